"""A JSON Schema (draft 2020-12) of configurations: editors complete and check YAML files with it.

The schema knows keys, types, ranges and the names of parts. It requires no key, because `extends` and overrides may
give what a file lacks; `fl run` checks the whole. A user's own part (`file.py:Name`) may have any argument.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from fl.reference import parts, tree
from fl.reference.limits import Limit
from fl.reference.tree import Key
from fl.reference.types import Type, section_of_kind

DRAFT = "https://json-schema.org/draft/2020-12/schema"
DATA_FILE = r"\.(npz|parquet|csv)$"
OWN = {"type": "string", "pattern": ":"}  # path/to/file.py:Name or module:Name

_OWN_STRATEGY = {  # it may bring a client algorithm of the user's, with other keys
    "required": ["strategy"],
    "properties": {
        "strategy": {
            "if": {"type": "string"},
            "then": OWN,
            "else": {"anyOf": [{"required": ["name"], "properties": {"name": OWN}}, {"propertyNames": OWN}]},
        }
    },
}

Schema = dict[str, Any]


def configuration_schema() -> Schema:
    """Return the schema of a whole configuration."""
    keys = tree.configuration()
    properties = {key.name: _of_key(key) for key in keys}
    properties["extends"] = {"type": "string", "description": "another YAML file, over which this one is laid"}
    cohort = properties["cohort"]
    properties["cohort"] = {"anyOf": [cohort, {"type": "null"}], "description": cohort.pop("description")}
    whole: Schema = {"$schema": DRAFT, "title": "Configuration of fl", "type": "object", "properties": properties}
    client = properties["client"]
    properties["client"] = {"description": client.pop("description")}  # its keys depend on the strategy
    other = {"if": _OWN_STRATEGY, "else": {"properties": {"client": client}}}
    whole |= {"additionalProperties": False, "allOf": [other, *_clients_by_strategy()]}
    return whole | {"$defs": _reachable(whole)}


def schema_of(keys: Iterable[Key], title: str) -> Schema:
    """Return the schema of a mapping with these keys: a section, or the arguments of a part."""
    whole = {"$schema": DRAFT, "title": title, **_closed({key.name: _of_key(key) for key in keys})}
    return whole | {"$defs": _reachable(whole)}


def schema_of_key(key: Key) -> Schema:
    """Return the schema of the value of a key."""
    whole = {"$schema": DRAFT, "title": key.path, **_of_key(key)}
    return whole | {"$defs": _reachable(whole)}


def schema_of_kind(kind: str) -> Schema:
    """Return the schema of the ways to write a part of this kind."""
    whole = {"$schema": DRAFT, "title": kind, "$ref": f"#/$defs/{kind}"}
    return whole | {"$defs": _reachable(whole)}


def _of_key(key: Key) -> Schema:
    """The schema of a key's value, with its meaning."""
    found = _of_type(key.type, key.limit)
    if key.type.form == "list":  # one item may stand without its list
        found = {"anyOf": [found, found["items"]]}
    return found | ({"description": key.meaning} if key.meaning else {})


def _of_type(type_: Type, limit: Limit = Limit()) -> Schema:
    """The schema of a type."""
    match type_.form:
        case "any":
            return {}
        case "choice":
            return {"enum": list(type_.values)}
        case "union":
            return {"anyOf": [_of_type(item, limit) for item in type_.items]}
        case "list":
            return {"type": "array", "items": _of_type(type_.items[0], limit)}
        case "tuple":
            return {"type": "array", "prefixItems": [_of_type(item, limit) for item in type_.items], "items": False}
        case "mapping":
            return {"type": "object", "additionalProperties": _of_type(type_.items[0], limit)}
        case "part":
            return {"$ref": f"#/$defs/{type_.kind}"}
        case "section":
            assert type_.section is not None
            return _closed({key.name: _of_key(key) for key in tree.keys_of(type_.section)})
    return {
        "type": type_.form,
        **(_range(limit) if type_.form in ("integer", "number") else {}),
        **_values(type_, limit),
    }


def _values(type_: Type, limit: Limit) -> Schema:
    return {"enum": list(limit.values)} if type_.form == "string" and limit.values else {}


def _range(limit: Limit) -> Schema:
    found: Schema = {}
    if limit.low is not None:
        found["exclusiveMinimum" if limit.above else "minimum"] = limit.low
    if limit.high is not None:
        found["exclusiveMaximum" if limit.below else "maximum"] = limit.high
    return found


def _closed(properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "additionalProperties": False}


# -- parts ------------------------------------------------------------------------------------------------------------
def _reachable(schema: Schema) -> Schema:
    """The definitions that a schema refers to, and those that they refer to."""
    found: Schema = {}
    waiting = _references(schema)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = _definition(name)
            waiting += _references(found[name])
    return dict(sorted(found.items()))


def _references(schema: Schema) -> list[str]:
    return re.findall(r'"#/\$defs/([\w.-]+)"', json.dumps(schema))


def _definition(reference: str) -> Schema:
    """The schema called KIND (every way to write a part), KIND.NAME (a part's arguments), or KIND.unnamed."""
    kind, _, name = reference.partition(".")
    if not name:
        return _part(kind)
    if name == "unnamed":
        return _unnamed(kind)
    keys = _keys(kind, name)
    entry = parts.names(kind)[name]
    properties = {key.name: _of_key(key) for key in (*keys, *_beside(kind))}
    return {"description": entry.summary} | _closed({"name": {"enum": list(entry.names)}} | properties)


@functools.cache
def _keys(kind: str, name: str) -> tuple[Key, ...]:
    """The keys of a registered part."""
    return tree.keys_of(parts.names(kind)[name].definition)


def _beside(kind: str) -> tuple[Key, ...]:
    """The options that stand beside the arguments of all parts of a kind."""
    section = section_of_kind(kind)
    return () if section is None else tree.keys_of(section)


def _part(kind: str) -> Schema:
    """A name, a mapping with a name, or `{NAME: {arguments}}`."""
    entries = parts.names(kind)
    names = [name for entry in entries.values() for name in entry.names]
    named = {"type": "string", "anyOf": [{"enum": names}, OWN, *([{"pattern": DATA_FILE}] if kind == "data" else [])]}
    cases = [
        {"if": {"properties": {"name": {"enum": list(entry.names)}}}, "then": {"$ref": f"#/$defs/{kind}.{name}"}}
        for name, entry in entries.items()
    ]
    mapping = {
        "type": "object",
        "if": {"required": ["name"]},
        "then": {"properties": {"name": named}} | ({"allOf": cases} if cases else {}),
        "else": {"$ref": f"#/$defs/{kind}.unnamed"},
    }
    return {"if": {"type": "string"}, "then": named, "else": mapping}


def _unnamed(kind: str) -> Schema:
    """A mapping without `name`: the arguments of a part that is named elsewhere or by default, or `{NAME: {...}}`."""
    found: dict[str, list[Schema]] = {}
    for name, entry in parts.names(kind).items():
        for key in (*_keys(kind, name), *_beside(kind)):
            found.setdefault(key.name, []).append(_of_key(key))
        for each in entry.names:
            found.setdefault(each, []).append({"$ref": f"#/$defs/{kind}.{name}"})
    properties = {}
    for key_name, schemas in found.items():
        plain = {json.dumps({k: v for k, v in s.items() if k != "description"}): s for s in schemas}
        several = list(plain.values())
        properties[key_name] = several[0] if len(several) == 1 else {"anyOf": [json.loads(text) for text in plain]}
    return _closed(properties) | {"patternProperties": {":": {}}}


def _clients_by_strategy() -> Iterator[Schema]:
    """Rules: where a file names a strategy and no client algorithm, `client` holds arguments of the strategy's."""
    brought: dict[str, list[str]] = {}
    for entry in parts.names("strategy").values():
        brought.setdefault(parts.client_of(entry.definition), []).extend(entry.names)
    names = [name for entry in parts.names("client").values() for name in ("name", *entry.names)]
    only_arguments = {"type": "object", "propertyNames": {"not": {"anyOf": [{"enum": sorted(set(names))}, OWN]}}}
    for client, strategies in brought.items():
        if client not in parts.names("client"):
            continue
        named = {"required": ["name"], "properties": {"name": {"enum": strategies}}}
        alone = {"minProperties": 1, "maxProperties": 1, "propertyNames": {"enum": strategies}}
        mapping = {"type": "object", "if": {"required": ["name"]}, "then": named, "else": alone}
        strategy = {"anyOf": [{"enum": strategies}, mapping]}
        asked = {"required": ["strategy", "client"], "not": {"required": ["extends"]}}
        asked["properties"] = {"strategy": strategy, "client": only_arguments}
        yield {"if": asked, "then": {"properties": {"client": {"$ref": f"#/$defs/client.{client}"}}}}
