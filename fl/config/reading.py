"""Read a configuration: a YAML file or a dict, the file that it `extends`, then overrides by dotted path."""

from __future__ import annotations

import dataclasses
import difflib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from fl.config.fields import own_keys
from fl.config.packaged import hint, packaged
from fl.config.references import anchor, anchored, find, holds_data, named
from fl.config.yaml import parse
from fl.errors import ConfigError
from fl.kinds import KINDS

# top-level keys that hold one part
PARTS = {kind.key: kind.name for kind in KINDS.values() if kind.top_level}


def read(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The configuration as a dict of plain values; nothing is built or checked yet.

    Args:
        source: a YAML file, the name of one that comes with fl (`quickstart`), or the same content as a mapping. The
            source itself is not changed.
        overrides: dotted path -> value, laid over the source in this order.
    """
    if isinstance(source, Mapping):
        config = _extended(_copied(source), Path(), ())
    else:
        config = _read_file(Path(source) if Path(source).exists() else packaged(str(source)) or Path(source), ())
    for path, value in (overrides or {}).items():
        _override(config, path, anchored(value, Path()) if isinstance(value, str) else value)
    return config


def _copied(node: Any) -> Any:
    """A deep copy of mappings and lists, because overrides change them; built parts are kept."""
    if isinstance(node, Mapping):
        return {k: _copied(v) for k, v in node.items()}
    return [_copied(v) for v in node] if isinstance(node, list) else node


def _read_file(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """The content of a file; `above` are the files that extend it."""
    if path.is_dir():
        resume = f"; `fl resume {path}` continues the run in it" if (path / "config.yaml").is_file() else ""
        found = sorted(str(p) for p in path.glob("*.yaml"))
        raise ConfigError("", f"{path} is a folder; name a YAML file{f', one of {found}' if found else ''}{resume}")
    if not path.is_file():
        beside = [str(p) for pattern in ("*.yaml", "*.yml") for p in path.parent.glob(pattern)]
        twin = [p for p in beside if Path(p).stem == path.stem]
        close = twin or difflib.get_close_matches(str(path), beside, 1)
        raise ConfigError("", f"{path} does not exist." + (f" Did you mean {close[0]}?" if close else hint(path)))
    if path.resolve() in above:
        raise ConfigError("extends", f"{path} extends itself")
    try:
        config = parse(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise ConfigError("", f"{path} is not UTF-8 text; save it as UTF-8 (some editors write UTF-16)") from None
    except yaml.YAMLError as error:
        raise ConfigError("", f"{path} is not YAML: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError("", f"{path} holds {type(config).__name__}, not a mapping of keys")
    return _extended(config, path.parent, (*above, path.resolve()))


def _extended(config: dict[str, Any], folder: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """`config` laid over the file that it extends."""
    anchor(config, folder)
    for key, kind in PARTS.items():
        if isinstance(config.get(key), Mapping):
            config[key] = named(kind, config[key])
    base = config.pop("extends", None)
    if base is None:
        return config
    if not isinstance(base, str):
        raise ConfigError("extends", f"{base!r} is not the name of a YAML file")
    merged = _read_file(folder / base, above)
    for key, value in config.items():
        _merge(merged, key, value)
    return merged


def _merge(config: dict[str, Any], key: str, value: Any) -> None:
    """Lay `value` over config[key]. Mappings are merged, except that a part with another name replaces the old one."""
    old = config.get(key)
    if isinstance(old, str) and isinstance(value, dict):
        old = {"name": old}
    if isinstance(old, dict) and isinstance(value, dict) and value.get("name", old.get("name")) == old.get("name"):
        for k, v in value.items():
            _merge(old, k, v)
        config[key] = old
    else:
        config[key] = value


def _override(config: dict[str, Any], path: str, value: Any) -> None:
    """Set one key by its dotted path. `x.name=other` drops the keys that the other part does not have."""
    *parents, last = path.split(".")
    node: Any = config
    for i, key in enumerate(parents):
        child = node.get(key)
        if child is None or isinstance(child, (str, int, float)):
            child = {"name": child} if isinstance(child, str) else {}  # a number gives way to a section: lr.schedule
            node[key] = child
        if not isinstance(child, dict):
            raise ConfigError(".".join(parents[: i + 1]), f"is {type(child).__name__}, so {path!r} names nothing in it")
        node = child
    if last == "name" and len(parents) in (1, 2) and node.get("name") != value:
        _drop_foreign(parents[-1], node, value)
    if not parents and last in PARTS and isinstance(value, Mapping):
        value = named(PARTS[last], value)
    given = not parents and last == "data" and isinstance(value, Mapping) and holds_data(value)
    if isinstance(value, dict) and isinstance(node.get(last), (dict, str)) and not given:
        _merge(node, last, value)
    else:
        node[last] = value


def _drop_foreign(key: str, node: dict[str, Any], name: str) -> None:
    """Drop the keys of the part in `node` that the part called `name` does not have, with a warning."""
    kind = KINDS.get(key)
    if kind is None:
        return
    part = find(kind, name, f"{key}.name")
    known = {f.name for f in dataclasses.fields(part)} if dataclasses.is_dataclass(part) else set(node)
    known |= own_keys(kind)
    foreign = [k for k in node if k != "name" and k not in known]
    for k in foreign:
        del node[k]
    if foreign:
        logging.getLogger(__name__).warning("%s.name=%s: dropped %s, which it does not have", key, name, foreign)
