"""Configuration: YAML is the constructor's shadow. Keys are argument names of frozen dataclasses; no class reads YAML.

    read(path, overrides) -> dict        extends: other.yaml, then key.path=value
    resolve(dict)         -> Config      every part built and checked, before any work starts; to_dict() gives it back

A part is a name, {name: ..., its arguments}, or {name: {its arguments}} with nothing beside it. A mistake is a `ConfigError` that says where, what, what is allowed, and what
may have been meant.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml

from fl import registry
from fl.communication.codec import Chain, Codec
from fl.communication.section import Codecs
from fl.config.sections import Evaluation, Stop
from fl.data.augment import Augment
from fl.data.dataset import Loader
from fl.data.folder import DATA_FILES
from fl.data.section import DATA_KEYS, Data
from fl.data.splits import Splits
from fl.errors import ConfigError, UnknownName
from fl.execution.section import Execution
from fl.method.client import ClientAlgorithm
from fl.method.optimiser import Optimiser
from fl.method.sampler import Sampler
from fl.method.server_optimiser import ServerOptimiser
from fl.method.strategy import Strategy
from fl.method.transform import Transform
from fl.models.adapter import Adapter
from fl.models.section import MODEL_KEYS, Model, model_part
from fl.storage.section import Checkpoint
from fl.system.availability import Availability
from fl.system.devices import DeviceModel
from fl.system.events import Asynchronous
from fl.system.rounds import ServerMode, Synchronous
from fl.system.section import System
from fl.tasks.task import Task


# -- sections that are not parts --------------------------------------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Config:
    """A run, resolved: `parts` are built objects; `to_dict` is what made them, with every default written out."""

    seed: int = 0
    rounds: int = 10
    data: Any
    partition: Any
    stream: Any = None
    shift: Any = None
    splits: Splits = field(default_factory=Splits)
    model: Any
    task: Task
    cohort: Sampler
    strategy: Strategy
    client: ClientAlgorithm
    transforms: tuple[Transform, ...] = ()
    codec: Codecs = field(default_factory=Codecs)
    system: System | None = None
    server: ServerMode = field(default_factory=Synchronous)
    evaluation: Evaluation = field(default_factory=Evaluation)
    execution: Execution = field(default_factory=Execution)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    stop: Stop = field(default_factory=Stop)
    baselines: tuple[Literal["local", "centralised", "finetune", "majority"], ...] = ()

    def __post_init__(self):
        if self.rounds < 1:
            raise ValueError(f"rounds: {self.rounds} is not at least 1")
        if self.seed < 0:
            raise ValueError(f"seed: {self.seed} is negative")
        if self.system is None and self.server != Synchronous():
            raise ConfigError("system", "missing; who comes when follows from system.devices, which `server` needs")
        if self.system is None and self.stop.simulated_seconds is not None:
            raise ConfigError("stop.simulated_seconds", "no virtual time passes; give clients devices with `system`")

    def to_dict(self) -> dict[str, Any]:
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @property
    def up(self) -> Codec:
        return _chain(self.codec.up)

    @property
    def down(self) -> Codec:
        return _chain(self.codec.down)


# what a field of this type holds is a registered part of this kind
_KINDS = {
    Strategy: "strategy",
    ClientAlgorithm: "client",
    Task: "task",
    Sampler: "sampler",
    Codec: "codec",
    Optimiser: "optimiser",
    ServerOptimiser: "server_optimiser",
    Transform: "transform",
    Adapter: "adapter",
    Augment: "augment",
    Loader: "data",
    DeviceModel: "devices",
    Availability: "availability",
    ServerMode: "server",
}
_BY_NAME = ("data", "model", "partition", "stream", "shift")
# a part with what is done to it: the section's class, its own keys
_SECTIONS = {"data": (Data, DATA_KEYS), "model": (Model, MODEL_KEYS)}
# top-level keys that hold a part, and of which kind: overrides find its arguments whichever way it is written
_NAMED = {key: key for key in ("data", "partition", "stream", "shift", "model", "task", "strategy", "client")}
_NAMED |= {"cohort": "sampler", "server": "server"}
_DEFAULTS = {"task": "classification", "partition": "iid"}


# -- reading ----------------------------------------------------------------------------------------------------------
class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number (the 1.1 specification wants 1.0e-3) and a key given twice is an error."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(str(key), f"given twice in one place (line {node.start_mark.line + 1} on)")
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse(text: str) -> Any:
    return yaml.load(text, _Loader)


def read(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The configuration as a dict: a file (with what it `extends`) or a dict, then `overrides` by dotted path."""
    config = _read_file(Path(source), ()) if isinstance(source, (str, Path)) else _extended(_copied(source), Path(), ())
    for path, value in (overrides or {}).items():
        _set(config, path, _anchored(value, Path()) if isinstance(value, str) else value)
    return config


def _copied(node: Any) -> Any:
    """Mappings and lists anew, as overrides change them; parts that are built already stay what they are."""
    if isinstance(node, Mapping):
        return {k: _copied(v) for k, v in node.items()}
    return [_copied(v) for v in node] if isinstance(node, list) else node


def _read_file(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    if not path.is_file():
        near = difflib.get_close_matches(str(path), [str(p) for p in path.parent.glob("*.yaml")], 1)
        raise ConfigError("", f"{path} does not exist." + (f" Did you mean {near[0]}?" if near else ""))
    if path.resolve() in above:
        raise ConfigError("extends", f"{path} extends itself")
    try:
        config = parse(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError("", f"{path} is not YAML: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError("", f"{path} holds {type(config).__name__}, not a mapping of keys")
    return _extended(config, path.parent, (*above, path.resolve()))


def _extended(config: dict[str, Any], folder: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    anchor(config, folder)
    for key, kind in _NAMED.items():
        if isinstance(config.get(key), Mapping):
            config[key] = _by_name(kind, config[key])
    base = config.pop("extends", None)
    if base is None:
        return config
    merged = _read_file(folder / base, above)
    for key, value in config.items():
        _merge(merged, key, value)
    return merged


def anchor(node: Any, folder: Path) -> None:
    """References to user files are relative to the file that makes them, or else to the present folder."""
    for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        if isinstance(node[key], str):
            node[key] = _anchored(node[key], folder)
        else:
            anchor(node[key], folder)


def _anchored(reference: str, folder: Path) -> str:
    """`path.py:Name`, or a file of data, with its path made absolute, if there is such a file in `folder`; else as it is."""
    if reference.endswith(DATA_FILES) and (folder / reference).is_file():
        return str((folder / reference).resolve())
    where, colon, name = reference.rpartition(":")
    if re.fullmatch(r"[^:]+\.py", where) and (folder / where).is_file():
        return str((folder / where).resolve()) + colon + name
    return reference


def _merge(config: dict[str, Any], key: str, value: Any) -> None:
    """Lay `value` over config[key]: mappings are merged, but a part of another name starts anew."""
    old = config.get(key)
    if isinstance(old, str) and isinstance(value, dict):
        old = {"name": old}
    if isinstance(old, dict) and isinstance(value, dict) and value.get("name", old.get("name")) == old.get("name"):
        for k, v in value.items():
            _merge(old, k, v)
        config[key] = old
    else:
        config[key] = value


def _set(config: dict[str, Any], path: str, value: Any) -> None:
    """One override. `x.name=other` drops the keys that the other part lacks, and says so."""
    *parents, last = path.split(".")
    node: Any = config
    for i, key in enumerate(parents):
        child = node.get(key)
        if child is None or isinstance(child, (str, int, float)):
            child = {} if child is None else {"name": child}
            node[key] = child
        if not isinstance(child, dict):
            raise ConfigError(".".join(parents[: i + 1]), f"is {type(child).__name__}, so {path!r} names nothing in it")
        node = child
    if last == "name" and len(parents) in (1, 2) and node.get("name") != value:
        _drop_foreign(parents[-1], node, value)
    if not parents and last in _NAMED and isinstance(value, Mapping):
        value = _by_name(_NAMED[last], value)
    if isinstance(value, dict) and isinstance(node.get(last), (dict, str)):
        _merge(node, last, value)
    else:
        node[last] = value


def _drop_foreign(section: str, node: dict[str, Any], name: str) -> None:
    kind = {"cohort": "sampler"}.get(section, section)
    if kind in registry.PACKAGES:
        cls = _lookup(kind, name, f"{section}.name")
        known = {f.name for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set(node)
        known |= _SECTIONS[section][1] if section in _SECTIONS else set()
        foreign = [k for k in node if k != "name" and k not in known]
        for key in foreign:
            del node[key]
        if foreign:
            import logging

            logging.getLogger(__name__).warning(
                "%s.name=%s: dropped %s, which it does not have", section, name, foreign
            )


# -- resolving --------------------------------------------------------------------------------------------------------
def resolve(config: Mapping[str, Any]) -> Config:
    """Build and check every part."""
    config = dict(config)
    config["server"] = _value(_by_mode(config.get("server", "sync")), ServerMode, "server")
    if isinstance(config["server"], Asynchronous):  # its clock says who trains
        config.setdefault("cohort", {"size": 1})
    for required in ("data", "model", "strategy", "cohort"):
        if required not in config:
            raise ConfigError(required, "missing; a run needs data, model, strategy and cohort")
    for key, name in _DEFAULTS.items():
        config.setdefault(key, name)
    strategy = _value(config["strategy"], Strategy, "strategy")
    client = config.get("client", {})
    if isinstance(client, Mapping) and "name" not in client:
        home = Path(getattr(sys.modules[type(strategy).__module__], "__file__", None) or ".").parent
        config["client"] = {"name": _anchored(strategy.client, home), **client}
    cohort = config["cohort"]
    if isinstance(cohort, Mapping) and "name" not in cohort:
        config["cohort"] = {"name": "uniform", **cohort}
    if config.get("stream") is not None:
        stream = config["stream"] = _part("stream", config["stream"], "stream")
        if config.setdefault("rounds", stream.total_rounds) != stream.total_rounds:
            raise ConfigError(
                "rounds",
                f"{config['rounds']} beside a stream of {stream.total_rounds}; leave rounds out, or set stream.rounds",
            )
    return _build(Config, config, "")


def _by_mode(server: Any) -> Any:
    """`mode` is what a server calls its name."""
    if isinstance(server, Mapping) and "mode" in server:
        if "name" in server:
            raise ConfigError("server.mode", f"{server['mode']!r} beside name {server['name']!r}; they are one")
        return {"name": server["mode"], **{key: value for key, value in server.items() if key != "mode"}}
    return server


def _build(cls: type, values: Mapping[str, Any], path: str) -> Any:
    """cls(**values), each value checked against its field's type."""
    if not dataclasses.is_dataclass(cls):
        if callable(cls):  # a user's own function: its arguments are its own affair
            return _constructed(functools.partial(cls, **values), path)
        raise ConfigError(path, f"{cls!r} is neither a dataclass nor a function")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in values:
        if key not in fields:
            raise ConfigError(
                _join(path, key), f"not a key of {_named(cls)}, which has {sorted(fields)}.{_meant(key, fields)}"
            )
    hints = _hints(cls)
    built = {
        key: _config_part(key, value)
        if cls is Config and key in _BY_NAME
        else _value(value, hints[key], _join(path, key))
        for key, value in values.items()
    }
    missing = [
        n
        for n, f in fields.items()
        if n not in built and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(_join(path, missing[0]), f"missing; {_named(cls)} needs it")
    return _constructed(functools.partial(cls, **built), path)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _constructed(make: Any, path: str) -> Any:
    try:
        return make()
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise located(path, error) from error


def located(path: str, error: Exception) -> ConfigError:
    """The complaint of the part at `path`; one that reads `key: what is wrong` is about path.key."""
    key, colon, rest = str(error).partition(": ")
    if not colon or not key.isidentifier():
        return ConfigError(path, str(error))
    return ConfigError(path if key == path else _join(path, key), rest)


def _value(value: Any, hint: Any, path: str) -> Any:
    """`value` as a `hint`: parts by name, sections by their fields, tuples from lists, plain values checked."""
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if isinstance(value, (Mapping, str)):
            for argument in arguments:
                if isinstance(value, str) and argument not in _KINDS:
                    continue
                if dataclasses.is_dataclass(argument) or argument in _KINDS or typing.get_origin(argument) is dict:
                    return _value(value, argument, path)
        return _plain_value(value, hint, path)
    if hint in _KINDS:
        return _part(_KINDS[hint], value, path)
    if origin is tuple and arguments[-1] is Ellipsis:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_value(item, arguments[0], f"{path}[{i}]") for i, item in enumerate(items))
    if origin is dict and dataclasses.is_dataclass(arguments[1]) and isinstance(value, Mapping):
        return {key: _value(item, arguments[1], _join(path, key)) for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(path, f"{value!r} is not a mapping of {sorted(f.name for f in dataclasses.fields(hint))}")
        return _build(hint, value, path)
    return _plain_value(value, hint, path)


def _plain_value(value: Any, hint: Any, path: str) -> Any:
    try:
        adapter = pydantic.TypeAdapter(hint, config=pydantic.ConfigDict(arbitrary_types_allowed=True))
        return adapter.validate_json(_json(value), strict=True) if _is_json(value) else adapter.validate_python(value)
    except pydantic.ValidationError as error:
        wanted = " or ".join(dict.fromkeys(e["msg"].removeprefix("Input should be ") for e in error.errors()))
        wanted = wanted.replace("an object", "a mapping").replace("valid array", "list")
        raise ConfigError(path, f"{value!r} is not {wanted}.{_meant(value, typing.get_args(hint))}") from None


def _is_json(value: Any) -> bool:
    return isinstance(value, (dict, list, tuple, str, int, float, bool, type(None)))


def _json(value: Any) -> str:
    import json

    return json.dumps(value)


def _config_part(key: str, value: Any) -> Any:
    """A part of the run whose kind has no base class; data and models with what is done to them."""
    if key not in _SECTIONS:
        return None if value is None and key in ("stream", "shift") else _part(key, value, key)
    section, own = _SECTIONS[key]
    if isinstance(value, section):
        return value
    done = {k: v for k, v in value.items() if k in own} if isinstance(value, Mapping) else {}
    rest = {k: v for k, v in value.items() if k not in own} if done else value
    hints = _hints(section)
    built = {k: _value(v, hints[k], f"{key}.{k}") for k, v in done.items()}
    return _constructed(functools.partial(section, part=_part(key, rest, key), **built), key)


def _part(kind: str, value: Any, path: str) -> Any:
    """A registered part (or a user's own) from a name or {name: ..., arguments}."""
    if not isinstance(value, (str, Mapping)):
        if not isinstance(value, (int, float, bool, Sequence, type(None))):
            if kind == "model" and not hasattr(value, "build"):
                return _constructed(functools.partial(model_part, value, {}), path)
            return value  # built already: the Python API takes objects too
        raise ConfigError(path, f"{value!r} is neither a name nor a mapping with a name; one of {registry.names(kind)}")
    value = _by_name(kind, value)
    name = value.pop("name", None)
    if not isinstance(name, str):
        if len(value) == 1 and isinstance(next(iter(value.values())), Mapping):
            _lookup(kind, str(next(iter(value))), path)  # {NAME: {...}}: says what may have been meant
        raise ConfigError(f"{path}.name", f"missing; one of {registry.names(kind)}")
    if kind == "data" and name.endswith(DATA_FILES):
        value.setdefault("path", _anchored(name, Path()))
    cls = _lookup(kind, name, f"{path}.name" if value else path)
    if kind == "model" and not (isinstance(cls, type) and hasattr(cls, "build")):
        part = _constructed(functools.partial(model_part, cls, value), path)
    else:
        part = _build(cls, value, path)
    by_fields = dataclasses.is_dataclass(part) and type(part) is cls
    _references[id(part)] = (part, _anchored(name, Path()), None if by_fields else value)
    return part


def _by_name(kind: str, value: Any) -> dict[str, Any]:
    """NAME and {NAME: {arguments}} as {name: NAME, arguments}; whatever else it is stays."""
    if isinstance(value, str):
        return {"name": value}
    if len(value) == 1 and "name" not in value:
        ((name, arguments),) = value.items()
        if isinstance(arguments, Mapping) and isinstance(name, str) and _is_part(kind, name):
            return {"name": name, **arguments}
    return dict(value)


def _is_part(kind: str, name: str) -> bool:
    try:
        registry.lookup(kind, name)
    except UnknownName:
        return False
    return True


# what a part was asked for by: name, and a function's arguments; the part is kept, so that its id stays its own
_references: dict[int, tuple[Any, str, dict[str, Any] | None]] = {}


def _lookup(kind: str, name: str, path: str) -> Any:
    try:
        return registry.lookup(kind, "file" if kind == "data" and name.endswith(DATA_FILES) else name)
    except UnknownName as error:
        raise ConfigError(path, str(error)) from None


def _plain(value: Any) -> Any:
    """Built parts back to YAML's values."""
    for section, own in _SECTIONS.values():
        if not isinstance(value, section):
            continue
        done = {key: _plain(getattr(value, key)) for key in sorted(own)}
        part = _plain(value.part)
        return {**part, **{k: v for k, v in done.items() if v}} if isinstance(part, Mapping) else part
    if id(value) in _references:
        part, name, arguments = _references[id(value)]
        if arguments is not None:
            return {"name": name, **arguments}
        return {"name": getattr(type(part), "registered_as", name) if ":" not in name else name} | _fields(part)
    if dataclasses.is_dataclass(value):
        registered = getattr(type(value), "registered_as", None)
        return ({"name": registered} if registered else {}) | _fields(value)
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return repr(value)


def _fields(part: Any) -> dict[str, Any]:
    return {f.name: _plain(getattr(part, f.name)) for f in dataclasses.fields(part) if f.init}


def _named(cls: type) -> str:
    return repr(getattr(cls, "registered_as", cls.__name__))


def _meant(value: Any, allowed: typing.Iterable[Any]) -> str:
    near = difflib.get_close_matches(str(value), [a for a in allowed if isinstance(a, str)], 1)
    return f" Did you mean {near[0]!r}?" if near else ""


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _chain(codecs: tuple[Codec, ...]) -> Codec:
    return codecs[0] if len(codecs) == 1 else Chain(codecs)
