"""Built parts and sections back to plain values that YAML can hold, with every default written out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from fl.config.fields import fields_of, own_keys
from fl.config.objects import OBJECT, reference_to
from fl.config.references import PartReference
from fl.errors import dotted
from fl.kinds import kind_of

References = Mapping[str, PartReference]


def to_plain(value: Any, path: str, references: References) -> Any:
    """The plain value of what stands at `path` of a configuration.

    Args:
        value: a part, a section, or a plain value.
        path: its dotted path.
        references: dotted path -> how the part there was asked for.
    """
    kind = kind_of(type(value))
    if kind is not None and type(value) is kind.section_class:
        return _section(value, own_keys(kind), path, references)
    reference = references.get(path)
    if reference is not None and reference.describes(value):
        if reference.arguments is not None:
            return {"name": reference.name, **reference.arguments}
        name = reference.name if ":" in reference.name else getattr(type(value), "registered_as", reference.name)
        return {"name": name} | _fields(value, path, references)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    given = reference_to(value)
    if given is not None:
        with_fields = dataclasses.is_dataclass(value) and not given.startswith(OBJECT)
        return {"name": given} | (_fields(value, path, references) if with_fields else {})
    if dataclasses.is_dataclass(value):
        registered = getattr(type(value), "registered_as", None)
        return ({"name": registered} if registered else {}) | _fields(value, path, references)
    if isinstance(value, Mapping):
        return {k: to_plain(v, dotted(path, k), references) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v, f"{path}[{i}]", references) for i, v in enumerate(value)]
    return repr(value)


def _section(value: Any, own: set[str], path: str, references: References) -> Any:
    """A part with the options that are set beside its arguments."""
    part = to_plain(value.part, path, references)
    if not isinstance(part, Mapping):
        return part
    options = {key: to_plain(getattr(value, key), dotted(path, key), references) for key in sorted(own)}
    return {**part, **{k: v for k, v in options.items() if v}}


def _fields(part: Any, path: str, references: References) -> dict[str, Any]:
    return {name: to_plain(getattr(part, name), dotted(path, name), references) for name in fields_of(part)}
