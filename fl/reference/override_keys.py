"""The keys that overrides can change in a configuration file: those of its sections and of the parts that it names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fl.errors import UnknownName
from fl.reference import parts, tree
from fl.reference.tree import Key, alternatives
from fl.reference.types import quoted


def keys_for(file: Path | None, overrides: Iterable[str] = (), prefix: str = "") -> list[Key]:
    """Return the keys of a configuration file that begin with `prefix`, in order, with those of the parts in it.

    Args:
        file: a YAML file; None, or a file that cannot be read: a configuration of default parts.
        overrides: earlier `key=value` arguments, which may name other parts.
        prefix: the beginning of a dotted path. Only sections and parts on this path are read.
    """
    named = dict(each.partition("=")[::2] for each in overrides)
    try:
        config = _read(file, 0) if file else {}
    except Exception:  # completion says nothing about broken files; `fl run` does
        config = {}
    found = _with_parts(tree.configuration(), config, named, prefix)
    return [key for key in found if key.path.startswith(prefix)]


def _read(path: Path, depth: int) -> dict[str, Any]:
    """The content of a file, laid over the files that it extends."""
    from fl.config.yaml import parse

    config = parse(path.read_text(encoding="utf-8-sig"))
    base = config.pop("extends", None)
    return config if base is None or depth > 10 else _read(path.parent / base, depth + 1) | config


def _with_parts(keys: Iterable[Key], config: Any, named: Mapping[str, str], prefix: str) -> Iterator[Key]:
    """Yield the keys, those of sections below them, and those of the parts that stand there.

    Args:
        keys: the keys of a section or a part.
        config: the value of that section, as far as it is known.
        named: dotted path -> the value that an override gives.
        prefix: the beginning of the keys that are wanted.
    """
    for key in keys:
        if not key.path.startswith(prefix) and not prefix.startswith(f"{key.path}."):
            continue
        yield key
        value = config.get(key.name) if isinstance(config, Mapping) else None
        yield from _with_parts(key.below, value, named, prefix)
        if key.type.form == "part" or (key.type.form == "union" and key.kind):
            yield from _of_part(key, value, config, named, prefix)


def _of_part(key: Key, value: Any, beside: Any, named: Mapping[str, str], prefix: str) -> Iterator[Key]:
    """Yield the keys of the part that a key holds."""
    name = named.get(key.path) or named.get(f"{key.path}.name") or _name(value)
    try:
        if not name and key.path == "client":
            strategy = named.get("strategy") or named.get("strategy.name") or _name(beside.get("strategy"))
            name = parts.client_of(parts.find("strategy", strategy)) if strategy else parts.default_name("client")
        part = parts.find(key.kind, name or key.default.strip("[]"))
    except (UnknownName, OSError, SyntaxError):
        return
    arguments = value if isinstance(value, Mapping) else {}
    arguments = arguments.get(name, arguments) if isinstance(arguments.get(name), Mapping) else arguments
    yield from _with_parts(tree.keys_of(part, key.path), arguments, named, prefix)


def _name(value: Any) -> str:
    """The name of a part in a configuration: NAME, `{name: NAME}` or `{NAME: {...}}`; "" without one."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        named = value.get("name")
        alone = next(iter(value)) if len(value) == 1 and isinstance(next(iter(value.values())), Mapping) else ""
        return named if isinstance(named, str) else alone
    return ""


def suggested_values(key: Key) -> list[str]:
    """Return values that a key may have, its default first: names of parts, choices, true and false."""
    found = [key.default] if key.default not in ("", "required") and " " not in key.default else []
    for each in alternatives(key.type):
        if each.form == "choice":
            found += [quoted(value) for value in each.values]
        elif each.form == "boolean":
            found += ["true", "false"]
        elif each.form == "null":
            found.append("null")
        elif each.form == "part":
            found += parts.names(each.kind)
        elif each.form == "string":
            found += [quoted(value) for value in key.limit.values if value is not None]
    return list(dict.fromkeys(found))
