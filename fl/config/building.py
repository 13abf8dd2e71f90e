"""Build parts and sections from plain values, and check each value against the type of its field."""

from __future__ import annotations

import dataclasses
import functools
import json
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import pydantic

from fl import registry
from fl.config import suggestions
from fl.config.fields import annotations_of, arms, default, fields_of, own_keys, required
from fl.config.objects import from_object, is_given
from fl.config.part_checks import DERIVED, check_class
from fl.config.references import PartReference, anchored, find, named, with_name
from fl.data.folder import DATA_FILES
from fl.errors import ConfigError, dotted, located
from fl.kinds import Kind, kind_of
from fl.models.section import model_part


class Builder:
    """Builds the values of one configuration and remembers how its parts were asked for.

    Args:
        root: the dataclass of the whole configuration, in which suggestions for unknown keys are looked up.
        config: the whole configuration, as plain values.
    """

    def __init__(self, root: type | None = None, config: Mapping[str, Any] | None = None):
        self.root, self.config = root, config if config is not None else {}
        self.references: dict[str, PartReference] = {}  # dotted path -> how the part there was asked for

    def section(self, cls: type, values: Mapping[str, Any], path: str, beside: Collection[str] = ()) -> Any:
        """An instance of the dataclass `cls`.

        Args:
            cls: a section or a part.
            values: its keys with plain values.
            path: dotted path of the section.
            beside: keys of an enclosing section that are written at the same place; error messages list them, too.
        """
        self.check_keys(cls, values, path, beside)
        annotations, fields = annotations_of(cls), fields_of(cls)
        built = {
            key: self.value(_with_default_name(value, fields[key]), annotations[key], dotted(path, key))
            for key, value in values.items()
        }
        for name, field in fields.items():
            if name not in built and required(field):
                raise ConfigError(dotted(path, name), f"missing; {_title(cls, path)} needs it")
        return _constructed(functools.partial(cls, **built), path)

    def check_keys(self, cls: type, values: Mapping[str, Any], path: str, beside: Collection[str] = ()) -> None:
        """Raise a `ConfigError` for the first key that the dataclass does not have, with a suggestion."""
        known = {*fields_of(cls), *beside}
        for key in values:
            if key not in known:
                meant = suggestions.for_key(key, path, known, self.root, self.config)
                raise ConfigError(
                    dotted(path, key), f"not a key of {_title(cls, path)}, which has {sorted(known)}.{meant}"
                )

    def value(self, value: Any, annotation: Any, path: str) -> Any:
        """Build `value` as its annotation asks: a part by name, a section by its keys, a tuple, or a plain value."""
        if annotation is Any:
            return value
        alternatives = arms(annotation)
        if value is None and NoneType in alternatives:
            return None
        if len(alternatives) > 1:
            chosen = _chosen(value, alternatives)
            return _plain(value, annotation, path) if chosen is None else self.value(value, chosen, path)
        kind = kind_of(annotation)
        if kind is not None:
            is_section = annotation is kind.section_class
            return self._part_in_section(kind, value, path) if is_section else self.part(kind, value, path)
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if origin is tuple and arguments[-1] is Ellipsis:
            items = value if isinstance(value, (list, tuple)) else [value]
            return tuple(self.value(item, arguments[0], f"{path}[{i}]") for i, item in enumerate(items))
        if origin is dict and dataclasses.is_dataclass(arguments[1]) and isinstance(value, Mapping):
            return {key: self.value(item, arguments[1], dotted(path, key)) for key, item in value.items()}
        if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
            if not isinstance(value, Mapping):
                meant = suggestions.for_section(value, annotation, path)
                raise ConfigError(path, f"{value!r} is not a mapping of {sorted(fields_of(annotation))}.{meant}")
            return self.section(annotation, value, path)
        return _plain(value, annotation, path)

    def part(self, kind: Kind, value: Any, path: str, beside: Collection[str] = ()) -> Any:
        """Build a registered part, or a user's own, from a name or a mapping with a name; return built parts."""
        if not isinstance(value, (str, Mapping)) or (kind.name == "data" and is_given(value)):
            return _built(kind, value, path)
        value = named(kind.name, value)
        name = value.pop("name", None)
        if not isinstance(name, str):
            raise _unnamed(kind, value, path)
        if kind.name == "data" and name.endswith(DATA_FILES):
            value.setdefault("path", anchored(name, Path()))
        cls = find(kind, name, dotted(path, "name") if value else path)
        if ":" in name and isinstance(cls, type):  # our own parts are checked by their tests
            check_class(kind, cls, name, path)
        if kind.name == "model" and not (isinstance(cls, type) and hasattr(cls, "build")):
            part = _constructed(functools.partial(model_part, cls, value), path)
        elif dataclasses.is_dataclass(cls) and isinstance(cls, type):
            _check_named(kind, {k: v for k, v in value.items() if k not in fields_of(cls)}, path)
            part = self.section(cls, value, path, beside)
        elif callable(cls):  # a user's function checks its arguments itself
            part = _constructed(functools.partial(cls, **value), path)
            if kind.name in DERIVED:
                check_class(kind, type(part), name, path)
        else:
            raise ConfigError(path, f"{cls!r} is neither a dataclass nor a function")
        by_fields = dataclasses.is_dataclass(part) and type(part) is cls
        self.references[path] = PartReference(anchored(name, Path()), part, None if by_fields else value)
        return part

    def _part_in_section(self, kind: Kind, value: Any, path: str) -> Any:
        """A section that holds a part, such as `data` or `model`; its options stand beside the part's arguments."""
        section = kind.section_class
        assert section is not None
        if isinstance(value, section):
            return value
        own, annotations = own_keys(kind), annotations_of(section)
        options = {k: v for k, v in value.items() if k in own} if isinstance(value, Mapping) else {}
        rest = {k: v for k, v in value.items() if k not in own} if options else value
        built = {k: self.value(v, annotations[k], dotted(path, k)) for k, v in options.items()}
        return _constructed(functools.partial(section, part=self.part(kind, rest, path, own), **built), path)


def _with_default_name(value: Any, field: dataclasses.Field[Any]) -> Any:
    """A mapping that names no part, with the name of the field's default part: `optimiser: {momentum: 0.9}` is SGD."""
    name = getattr(default(field), "registered_as", None)
    return value if name is None or not isinstance(value, Mapping) else with_name(value, name)


def _chosen(value: Any, alternatives: tuple[Any, ...]) -> Any:
    """The alternative of a union that holds a part or a section for `value`; None: the value is a plain one."""
    parts = [a for a in alternatives if kind_of(a) is not None]
    if isinstance(value, Mapping):
        sections = (
            a for a in alternatives if dataclasses.is_dataclass(a) or typing.get_origin(a) is dict or a in parts
        )
        return next(sections, None)
    only_parts = len(alternatives) == len(parts) + (NoneType in alternatives)
    plain = isinstance(value, (bool, int, float, list, tuple))
    return parts[0] if parts and (only_parts or not plain) else None


def _built(kind: Kind, value: Any, path: str) -> Any:
    """A part that the Python API was given as an object."""
    given = kind.name == "data" and is_given(value)
    if isinstance(value, (int, float, bool, Sequence, type(None))) and not given:
        known = registry.names(kind.name)
        if kind.name == "cohort" and isinstance(value, int):
            raise ConfigError(path, f"{value!r} is no sampler; write {path}: {{size: {value}}}, or {path}.size={value}")
        raise ConfigError(path, f"{value!r} is neither a name nor a mapping with a name; one of {known}")
    cls = value if isinstance(value, type) else type(value)
    if kind.name in DERIVED:
        check_class(kind, cls, cls.__name__, path)
    return _constructed(functools.partial(from_object, kind, value), path)


def _unnamed(kind: Kind, values: Mapping[str, Any], path: str) -> ConfigError:
    """The error for a mapping that names no part."""
    if len(values) == 1 and isinstance(next(iter(values.values())), Mapping):
        find(kind, str(next(iter(values))), path)  # {NAME: {...}} with a wrong name: its error suggests a close one
    _check_named(kind, values, path)
    return ConfigError(dotted(path, "name"), f"missing; one of {registry.names(kind.name)}")


def _check_named(kind: Kind, values: Mapping[str, Any], path: str) -> None:
    """Raise a `ConfigError` if one of the values is the name of a part: another word was written for `name`."""
    for key, value in values.items():
        if isinstance(value, str) and value in registry.names(kind.name, aliases=True):
            raise ConfigError(
                dotted(path, key), f"{value!r} is the name of a part; write {path}: {{name: {value}, ...}}"
            )


@functools.lru_cache(maxsize=1024)
def _adapter(annotation: Any, text: str) -> pydantic.TypeAdapter[Any]:
    """Pydantic's checks for an annotation; `text` tells equal unions apart whose alternatives have another order."""
    return pydantic.TypeAdapter(annotation, config=pydantic.ConfigDict(arbitrary_types_allowed=True))


def _plain(value: Any, annotation: Any, path: str) -> Any:
    """A number, string, list or mapping, checked by pydantic. YAML values are checked strictly: "3" is not an int."""
    json_types = (dict, list, tuple, str, int, float, bool, NoneType)
    try:
        adapter = _adapter(annotation, repr(annotation))
        if isinstance(value, json_types):
            return adapter.validate_json(json.dumps(value), strict=True)
        return adapter.validate_python(value)
    except pydantic.ValidationError as error:
        wanted = " or ".join(dict.fromkeys(e["msg"].removeprefix("Input should be ") for e in error.errors()))
        wanted = wanted.replace("an object", "a mapping").replace("valid array", "list")
        meant = suggestions.for_value(value, annotation, path)
        shown = "null" if value is None else repr(value)
        raise ConfigError(path, f"{shown} is not {wanted}.{meant}") from None


def _constructed(make: Callable[[], Any], path: str) -> Any:
    """make(), with the complaints of a part's constructor as `ConfigError`s at `path`."""
    try:
        return make()
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise located(path, error) from error


def _title(cls: type, path: str) -> str:
    """What error messages call a part or section."""
    return repr(getattr(cls, "registered_as", cls.__name__)) if path else "a configuration"
