"""A `Sweep` from a file of variants, or from a configuration and the arguments of a command.

    fl sweep digits.sweep.yaml                                         the file's keys are those of `Sweep`
    fl sweep digits.yaml client.lr=0.1,0.3 seed=0..2                   one variant, named after its strategy
    fl sweep digits.yaml strategy=fedavg,scaffold "client.lr=log(1e-3, 1)" --samples 10

A key with several values is tuned; `strategy=a,b` makes variants; a key with one value is set for all variants.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from fl import registry
from fl.config.building import Builder
from fl.config.reading import read
from fl.config.references import anchor, find, named
from fl.config.space import Values, values_of
from fl.config.yaml import parse
from fl.errors import ConfigError, did_you_mean, dotted
from fl.kinds import KINDS
from fl.storage.place import folder_name
from fl.tools.sweep.search import Search
from fl.tools.sweep.sweep import Sweep

MOST_SEEDS = 10_000
# key of a file -> type; variants and tune have checks of their own
KEYS: dict[str, Any] = {
    "config": str,
    "variants": None,
    "seeds": int | tuple[int, ...],
    "seeded": tuple[str, ...],
    "tune": None,
    "by": str,
    "metrics": tuple[str, ...],
    "search": Literal["grid", "random", "asha", "optuna"],
    "samples": int,
}


def load(
    path: Path,
    tune: Mapping[str, Any] = {},
    fixed: Mapping[str, Any] = {},
    **options: Any,
) -> Sweep:
    """Read a sweep from a file of variants or a configuration file.

    Args:
        path: the file; a file of variants has the key `variants`.
        tune: key -> values or the text of a range, in addition to those of the file. `strategy` makes variants.
        fixed: key -> value, for all variants.
        options: other keys of the file, which they replace; None leaves a key as it is.

    Raises:
        ConfigError: something is wrong with the file or an argument.
    """
    raw = _raw(path)
    if "variants" not in raw:
        raw = _of_configuration(path, raw, tune, fixed)
        tune = {key: values for key, values in tune.items() if key != "strategy"}
    raw |= {key: value for key, value in options.items() if value is not None}
    for key in raw:
        if key not in KEYS:
            raise ConfigError(key, f"not a key of a sweep, which has {sorted(KEYS)}.{did_you_mean(key, KEYS)}")
    if "config" not in raw:
        raise ConfigError("config", "missing; a sweep needs config: FILE.yaml and variants")
    plain = {key: _typed(key, raw[key]) for key, kind in KEYS.items() if kind is not None and key in raw}
    seeds = _seeds(plain.pop("seeds", 1))
    search = Search(plain.pop("search", None), _samples(plain.pop("samples", None)), seeds[0])
    space = _space(raw.get("tune", {}), "tune") | _space(tune, "")
    variants = _variants(raw["variants"], path.parent, tune, fixed)
    return Sweep(
        **plain | {"config": _file(plain["config"], path.parent, "config")},
        variants=variants,
        seeds=seeds,
        tune=space,
        search=search,
    )


def _raw(path: Path) -> dict[str, Any]:
    """The keys of a file; of a configuration without the file that it extends."""
    if not path.is_file():
        read(path)  # says what is wrong, and which file was probably meant
    try:
        raw = parse(path.read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as error:
        raise ConfigError("", f"{path} is not YAML: {error}") from None
    except UnicodeDecodeError:
        raise ConfigError("", f"{path} is not UTF-8 text; save it as UTF-8") from None
    if not isinstance(raw, dict):
        raise ConfigError("", f"{path} holds {type(raw).__name__}, not a mapping of keys")
    return raw


def _of_configuration(
    path: Path, raw: Mapping[str, Any], tune: Mapping[str, Any], fixed: Mapping[str, Any]
) -> dict[str, Any]:
    """The keys of a sweep over a configuration file: a variant for each strategy."""
    if "config" in raw:  # a configuration has no such key
        raise ConfigError(
            "variants", "missing; write a list of strategies, or names with overrides (`fl list strategy`)"
        )
    if not tune:
        raise ConfigError(
            "",
            f"{path} has no variants, so a sweep needs a key with several values, as in client.lr=0.03,0.1,0.3 or "
            "strategy=NAME,NAME (`fl list strategy`)",
        )
    names = tune.get("strategy")
    if names is None:
        strategy = named("strategy", read(path, fixed).get("strategy") or "run").get("name", "run")
        names = {re.sub(r"^.*[:/]", "", str(strategy)): {}}
    return {"config": path.name, "variants": names}


def _typed(key: str, value: Any) -> Any:
    if value is None:
        raise ConfigError(key, "has no value; write one, or leave the key out")
    try:
        return Builder().value(value, KEYS[key], key)
    except ConfigError as error:
        said = str(error).removeprefix(f"{error.path}: ")
        raise ConfigError(error.path, f"{said}{_WAY_OUT.get(key, '')}") from None


_WAY_OUT = {
    "config": " Write the path of a configuration file",
    "seeds": " Write a number of seeds, or a list such as [0, 1, 2]",
    "by": " Write the name of a metric, such as val/accuracy",
    "metrics": " Write a list such as [eval/accuracy]",
    "seeded": " Write a list of keys, such as [partition.seed]",
}


def _seeds(value: int | Sequence[int]) -> tuple[int, ...]:
    seeds = (value,) if isinstance(value, int) else tuple(value)
    if not seeds or min(seeds) < 0 or value == 0:
        shown = value if isinstance(value, int) else list(seeds)
        raise ConfigError("seeds", f"{shown} is neither a number of seeds, 1 or more, nor a list of seeds, 0 or more")
    if len(set(seeds)) < len(seeds):
        raise ConfigError("seeds", f"{list(seeds)} names one twice")
    if isinstance(value, int) and value > MOST_SEEDS:
        raise ConfigError("seeds", f"{value} is more than {MOST_SEEDS}")
    return tuple(range(value)) if isinstance(value, int) else seeds


def _samples(value: int | None) -> int | None:
    if value is not None and value < 1:
        raise ConfigError("samples", f"{value} is not 1 or more")
    return value


def _file(name: str, folder: Path, path: str) -> Path:
    file = folder / name
    if not file.is_file():
        near = sorted(p.name for p in folder.glob("*.yaml"))
        raise ConfigError(path, f"{file} does not exist; it is relative to the sweep's file.{did_you_mean(name, near)}")
    return file


def _space(raw: Any, path: str) -> dict[str, Values]:
    """What a key `tune` searches."""
    if not isinstance(raw, Mapping):
        raise ConfigError(path, f"{raw!r} is not a mapping of keys to values, as in {{client.lr: [0.03, 0.1, 0.3]}}")
    found = {}
    for key, values in raw.items():
        if not isinstance(key, str):
            raise ConfigError(path, f"{key!r} is not a key of a configuration, such as client.lr")
        if key == "seed":
            raise ConfigError(dotted(path, key), "a seed is not tuned; write seeds: [0, 1, 2], or seed=0..2")
        found[key] = values_of(values, dotted(path, key))
    return found


def _variants(raw: Any, folder: Path, tune: Mapping[str, Any], fixed: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """name -> overrides, from a mapping, or from a list of strategies and mappings."""
    anchor(raw, folder)
    if isinstance(raw, str):
        raw = [raw]
    pairs = raw.items() if isinstance(raw, Mapping) else _listed(raw)
    variants: dict[str, dict[str, Any]] = {}
    for name, own in pairs:
        if "," in folder_name("variants", name):
            raise ConfigError("variants", f"{name!r} cannot hold commas; they separate tuned settings")
        if not isinstance(name, str):
            raise ConfigError("variants", f"{name!r} is not a text; put it in quotes")
        if name in variants:
            raise ConfigError("variants", f"{name!r} is listed twice; give each a name, as in NAME: {{client.lr: 0.1}}")
        variant = _variant(dotted("variants", name), own, folder, tune)
        _keep_strategy(name, variant, {**tune, **fixed})
        variants[name] = variant | dict(fixed)
    if not variants:
        raise ConfigError(
            "variants", f"{raw!r} names none; write a list of strategies (`fl list strategy`), or names with overrides"
        )
    return variants


def _keep_strategy(name: str, variant: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Refuse an argument that would give a variant, such as `scaffold`, another strategy under its old name."""
    keys = ("strategy", "strategy.name")
    if any(key in variant for key in keys) and (given := [key for key in keys if key in arguments]):
        raise ConfigError(
            given[0],
            f"variant {name!r} has a strategy of its own, and would keep its name; choose variants with --only, "
            "write another variant into the file, or sweep the configuration file",
        )


def _listed(raw: Any) -> Iterable[tuple[Any, Any]]:
    """(name, overrides) of the items of a list: strategies, {NAME: overrides}, or overrides with a strategy."""
    if not isinstance(raw, (list, tuple)):
        raise ConfigError("variants", f"{raw!r} is neither a list of strategies nor a mapping of names to overrides")
    for i, item in enumerate(raw):
        path = f"variants[{i}]"
        if isinstance(item, str):
            find(KINDS["strategy"], item, path)
            yield re.sub(r"^.*[:/]", "", item), {"strategy": item}
        elif isinstance(item, Mapping) and "strategy" in item:
            yield named("strategy", item["strategy"]).get("name"), item
        elif isinstance(item, Mapping) and len(item) == 1 and isinstance(next(iter(item.values())), (Mapping, str)):
            yield from item.items()
        else:
            known = registry.names("strategy")
            raise ConfigError(
                path, f"{item!r} is neither a strategy nor {{NAME: {{key: value}}}}; strategies are {known}"
            )


def _variant(path: str, own: Any, folder: Path, tune: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides of a variant, with its own config, tune and by checked."""
    if own is None:
        own = {}
    if isinstance(own, str):  # SCAFFOLD: scaffold
        find(KINDS["strategy"], own, path)
        own = {"strategy": own}
    if not isinstance(own, Mapping):
        raise ConfigError(path, f"{own!r} is not a mapping of overrides, as in {{strategy: NAME, client.lr: 0.1}}")
    own = dict(own)
    for key in own:
        if not isinstance(key, str):
            raise ConfigError(path, f"{key!r} is not a key of a configuration, such as client.lr")
    for key in ("config", "by"):
        if key in own and not isinstance(own[key], str):
            raise ConfigError(dotted(path, key), f"{own[key]!r} is not a text")
    if "config" in own:
        own["config"] = str(_file(own["config"], folder, dotted(path, "config")))
    if "tune" in own:
        own["tune"] = _space(own["tune"], dotted(path, "tune")) | _space(tune, "")
    return own
