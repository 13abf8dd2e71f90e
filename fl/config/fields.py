"""The keys of a configuration section or a part: the fields of its dataclass."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Any

from fl.kinds import Kind, kind_of

# metadata of a dataclass field that is not a configuration key
NOT_A_KEY = {"config_key": False}


def fields_of(cls: Any) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a dataclass that are configuration keys, by name."""
    return {f.name: f for f in dataclasses.fields(cls) if f.init and f.metadata.get("config_key", True)}


@functools.cache
def annotations_of(cls: type) -> dict[str, Any]:
    """The types of a class's fields, with strings evaluated."""
    return typing.get_type_hints(cls)


def own_keys(kind: Kind) -> set[str]:
    """The options of a kind's section, which a configuration writes beside the part's own arguments."""
    section = kind.section_class
    return set() if section is None else set(fields_of(section)) - {"part"}


def section_of(cls: type, key: str) -> type | None:
    """The dataclass of the section that a field of `cls` holds; None for a part without options, or a plain value."""
    for arm in arms(annotations_of(cls)[key]):
        kind = kind_of(arm)
        if dataclasses.is_dataclass(arm) and isinstance(arm, type) and (kind is None or kind.section_class is arm):
            return arm
    return None


def arms(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union; the annotation itself if it is none.

    >>> arms(int | None)
    (<class 'int'>, <class 'NoneType'>)
    """
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return typing.get_args(annotation)
    return (annotation,)


def required(field: dataclasses.Field[Any]) -> bool:
    """Whether a field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def default(field: dataclasses.Field[Any]) -> Any:
    """The default of a field; None if it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default
