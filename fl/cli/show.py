"""The output of `fl show`: a part, a section, or the keys of a configuration, as text or as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

from fl.errors import UnknownName, did_you_mean
from fl.kinds import KINDS
from fl.reference import parts, tree
from fl.reference.source import Definition
from fl.reference.tree import Key

WIDTH = 100  # columns of a description
CONFIG = "config"  # the word for all keys, where a kind may stand


def as_text(kind: str | None, name: str | None) -> str:
    """What `fl show [KIND [NAME]]` prints."""
    if kind is None:
        return (
            f"{keys_as_text(tree.configuration())}\n\n`fl show config` shows all keys, `fl show KEY` those below a key."
        )
    if kind == CONFIG:
        return _whole() if name is None else _key(tree.below(name))
    if name is not None:
        return _part(known_kind(kind), name)
    key = _top_level(kind)
    lines = [key.text, keys_as_text(key.below)] if key is not None and key.below else []
    if kind in KINDS:
        lines.append(_wrapped(f"`fl show {kind} NAME` shows one of {', '.join(parts.names(kind))}."))
    return "\n\n".join(lines)


def as_json(kind: str | None, name: str | None) -> dict[str, Any]:
    """What `fl show [KIND [NAME]] --json` prints: a JSON Schema; with NAME, also what the part is."""
    from fl.reference import schema

    if kind is None or (kind == CONFIG and name is None):
        return schema.configuration_schema()
    if kind == CONFIG:
        assert name is not None
        return schema.schema_of_key(tree.below(name))
    if name is None:
        key = _top_level(kind)
        return schema.schema_of_kind(kind) if kind in KINDS or key is None else schema.schema_of_key(key)
    part = parts.find(known_kind(kind), name)
    keys = tree.keys_of(part)
    found: dict[str, Any] = {"kind": kind, "name": name, "source": part.module.docstring, "description": part.text}
    found |= {"client": parts.client_of(part)} if kind == "strategy" else {}
    found["arguments"] = [
        {"key": key.path, "type": key.words, "default": key.default, "meaning": key.meaning} for key in tree.flat(keys)
    ]
    return found | {"schema": schema.schema_of(keys, name)}


def known_kind(kind: str) -> str:
    """The kind, or an UnknownName."""
    if kind not in KINDS:
        raise UnknownName(f"{kind!r} is not one of {sorted(KINDS)}.{did_you_mean(kind, KINDS)}")
    return kind


def keys_as_text(keys: Iterable[Key]) -> str:
    """Lines of keys, each with its type and default, and its meaning below."""
    keys = list(keys)
    width = max((len(key.path) for key in keys), default=0)
    lines = []
    for key in keys:
        lines.append(f"{key.path:<{width}}  {key.words}{_default(key)}")
        if key.meaning:
            lines.append(_wrapped(key.meaning, " " * 8))
    return "\n".join(lines)


def _default(key: Key) -> str:
    return {"required": ", required", "": ""}.get(key.default, f" = {key.default}")


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def _whole() -> str:
    """All keys of a configuration, a paragraph for each section."""
    blocks: list[list[Key]] = [[]]
    for key in tree.configuration():
        if key.below or (blocks[-1] and blocks[-1][0].below):
            blocks.append([])
        blocks[-1] += [key, *tree.flat(key.below)]
    return "\n\n".join(keys_as_text(block) for block in blocks if block)


def _key(key: Key) -> str:
    """A key, and all keys below it."""
    owner = parts.name_of(key.part)
    kind = KINDS[key.path.partition(".")[0]].name if owner and key.path.partition(".")[0] in KINDS else ""
    other = f"This is the key of `{owner}`. `fl show {kind} NAME` shows the keys of another part." if kind else ""
    return "\n\n".join(filter(None, (keys_as_text([key]), key.text, keys_as_text(tree.flat(key.below)), other)))


def _part(kind: str, name: str) -> str:
    """What a part does, and its arguments."""
    part = parts.find(kind, name)
    lines = [part.module.docstring, part.text, keys_as_text(tree.flat(tree.keys_of(part)))]
    return "\n\n".join(filter(None, (*lines, _client(kind, part))))


def _client(kind: str, part: Definition) -> str:
    return f"client algorithm: {parts.client_of(part)}" if kind == "strategy" else ""


def _top_level(name: str) -> Key | None:
    """The top-level key of this name; None for a kind that stands elsewhere. An UnknownName for another word."""
    keys = {key.path: key for key in tree.configuration()}
    if name not in keys and name not in KINDS:
        sections = sorted(path for path, key in keys.items() if key.below)
        raise UnknownName(f"{name!r} is neither a section, one of {sections}, nor a kind, one of {sorted(KINDS)}")
    return keys.get(name)
