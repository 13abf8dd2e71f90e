"""Suggestions for unknown keys: the key that was probably meant, in all sections of this configuration."""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from collections.abc import Collection, Iterator, Mapping
from types import NoneType
from typing import Any

from fl import registry
from fl.config.fields import annotations_of, arms, default, fields_of, own_keys
from fl.config.references import named
from fl.errors import UnknownName, did_you_mean, dotted
from fl.kinds import KINDS, Kind, kind_of

# words of other frameworks and papers -> our keys
SYNONYMS = {
    "batch_size": "batch",
    "clients_per_round": "size",
    "fraction_fit": "fraction",
    "learning_rate": "lr",
    "local_epochs": "epochs",
    "local_steps": "steps",
    "num_clients": "clients",
    "num_rounds": "rounds",
    "optimizer": "optimiser",
    "random_seed": "seed",
    "num_workers": "workers",
    "y": "target",
    "label": "target",
}
MOST = 3  # suggestions in one message
SHORT = 3  # letters; shorter words are similar to everything


def for_key(key: str, path: str, known: Collection[str], root: type | None, config: Mapping[str, Any]) -> str:
    """A sentence that suggests keys for the unknown `key` of the section at `path`; "" if none is similar.

    The order of preference: the same key in another section, a similar key of this section, a similar key of another
    section.

    Args:
        key: the unknown key.
        path: dotted path of its section; "" for a top-level key.
        known: the keys of this section.
        root: the dataclass of the whole configuration; None: look in this section only.
        config: the whole configuration as plain values; it says which parts there are.
    """
    elsewhere = [p for p in (keys_of(root, config) if root else ()) if p.rpartition(".")[0] != path and p != path]
    for word in (key, SYNONYMS.get(key)):
        if word in known:
            return f" Did you mean {word!r}?"
        same = [p for p in elsewhere if word == p.rpartition(".")[2]]
        if same:
            return f" Did you mean {_listed(same)}?"
    here = did_you_mean(key, known)
    if here:
        return here
    if len(str(key)) < SHORT:
        return ""
    close = difflib.get_close_matches(str(key), {p.rpartition(".")[2] for p in elsewhere}, 1)
    return f" Did you mean {_listed([p for p in elsewhere if p.rpartition('.')[2] == close[0]])}?" if close else ""


# words of other frameworks -> our values
VALUES = {"gpu": "cuda", "cuda:0": "cuda"}


def for_value(value: object, annotation: object, path: str) -> str:
    """A sentence that suggests a value for a key whose `value` does not fit its type; "" if there is none."""
    allowed = [a for arm in arms(annotation) for a in (typing.get_args(arm) or (arm,))]
    word = VALUES.get(str(value))
    if word in allowed:
        return f" Did you mean {word!r}?"
    if path == "seed" and (isinstance(value, (list, tuple)) or re.fullmatch(r"\d+(,\s*\d+)+", str(value))):
        return " A run has one seed: seed=0..2 makes three runs, and `fl sweep` runs `seeds: [0, 1, 2]`."
    return did_you_mean(value, allowed)


def for_section(value: object, cls: type, path: str) -> str:
    """A sentence that suggests the key for a `value` written in place of a section; "" if there is none.

    A codec without a direction is one for updates: `codec=top_k` means `codec.up=top_k`.
    """
    for key, annotation in annotations_of(cls).items():
        for arm in arms(annotation):
            kind = next((k for a in (arm, *typing.get_args(arm)) if (k := kind_of(a)) is not None), None)
            if kind is not None and isinstance(value, str) and registry.is_registered(kind.name, value):
                return f" Did you mean {dotted(path, key)}={value}?"
    return ""


def _listed(paths: list[str]) -> str:
    """Join the first few of the paths with the fewest dots; the client's come before those of other parts."""
    depth = min(path.count(".") for path in paths)
    shallow = [path for path in paths if path.count(".") == depth]
    return " or ".join(sorted(shallow, key=lambda path: not path.startswith("client."))[:MOST])


def keys_of(cls: type, values: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Dotted paths of all keys of a section and of the sections and parts below it.

    Args:
        cls: the dataclass of the section.
        values: its plain values; they say which parts stand in it.
        path: its dotted path.
    """
    annotations = annotations_of(cls)
    for name, field in fields_of(cls).items():
        here, value = dotted(path, name), values[name] if name in values else default(field)
        yield here
        alternatives = arms(annotations[name])
        if value is None and NoneType in alternatives:
            continue
        for below in alternatives:
            yield from _below(below, value, here, values)


def _below(annotation: Any, value: Any, path: str, siblings: Mapping[str, Any]) -> Iterator[str]:
    """Dotted paths of the keys that a field with this annotation and value holds."""
    if typing.get_origin(annotation) is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        for i, item in enumerate(items):
            yield from _below(typing.get_args(annotation)[0], item, f"{path}[{i}]", siblings)
        return
    kind = kind_of(annotation)
    if kind is None:
        if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
            yield from keys_of(annotation, value if isinstance(value, Mapping) else {}, path)
        return
    part = _part(kind, value, siblings)
    if isinstance(part, type) and dataclasses.is_dataclass(part):
        yield from keys_of(part, named(kind.name, value) if isinstance(value, Mapping) else {}, path)
    if annotation is kind.section_class:
        yield from (dotted(path, key) for key in sorted(own_keys(kind)))


def _part(kind: Kind, value: Any, siblings: Mapping[str, Any]) -> Any:
    """The class of a part that a configuration asks for, or None if it cannot be found."""
    if value is not None and not isinstance(value, (str, Mapping)):
        return type(value)
    asked = named(kind.name, value) if value else {}
    try:
        name = asked.get("name") or _default(kind, siblings)
        return registry.lookup(kind.name, name) if name else None
    except UnknownName:
        return None


def _default(kind: Kind, siblings: Mapping[str, Any]) -> str:
    """Name of the part that is used when the configuration names none: a strategy brings its client algorithm."""
    if kind.name == "client" and siblings.get("strategy"):
        strategy = _part(KINDS["strategy"], siblings["strategy"], {})
        return getattr(strategy, "client", kind.default())
    return kind.default()
