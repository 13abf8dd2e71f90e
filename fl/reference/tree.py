"""All keys of a configuration as a tree.

configuration() -> (Key("seed"), Key("rounds"), Key("data", below=(Key("data.long_tail"), ...)), ...)
below("evaluation.every") -> that key        keys_of(part) -> the keys of a part or a section
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace

from fl.errors import UnknownName, did_you_mean, dotted
from fl.kinds import KINDS
from fl.reference import parts
from fl.reference.defaults import default_of
from fl.reference.limits import Limit, limits_of
from fl.reference.source import Argument, Definition, definition_of
from fl.reference.types import Type, section_of_kind, type_of, words

TAKEN_FROM = {"client": "the strategy's"}  # defaults that other keys decide
YAML_WORDS = {"None": "null", "True": "true", "False": "false"}
ROOT = "fl.config.config:Config"


@dataclass(frozen=True)
class Key:
    """A key of a configuration, of a section or of a part. What it says is read when it is asked for.

    Args:
        path: its dotted path.
        argument: its line in the source.
        part: the class that has it, a section or a part.
        decided: its default, where another key or the table of kinds decides; None: that of the class.
    """

    path: str
    argument: Argument
    part: Definition
    decided: str | None = None

    @property
    def name(self) -> str:
        """The last word of the path."""
        return self.path.rpartition(".")[2]

    @property
    def meaning(self) -> str:
        """What it does, as one line; "" without a description."""
        return in_yaml(" ".join(self.argument.description.split()))

    @functools.cached_property
    def type(self) -> Type:
        """Its type."""
        return type_of(self.argument)

    @functools.cached_property
    def limit(self) -> Limit:
        """Its allowed range."""
        return limits_of(self.part).get(self.argument.name, Limit())

    @property
    def default(self) -> str:
        """Its default as YAML; "required" if it has none, "" for a section."""
        return default_of(self.argument) if self.decided is None else self.decided

    @property
    def words(self) -> str:
        """Its type and range in words."""
        return words(self.type, self.limit)

    @property
    def kind(self) -> str:
        """The kind of the parts that it holds, or ""."""
        return next((each.kind for each in alternatives(self.type) if each.form == "part"), "")

    @functools.cached_property
    def section(self) -> Definition | None:
        """The class of the section that it holds, or of the options beside the arguments of its part; None without."""
        found = next((each.section for each in alternatives(self.type) if each.section is not None), None)
        beside = found is None and self.kind and KINDS[self.kind].key == self.path
        return section_of_kind(self.kind) if beside else found

    @property
    def text(self) -> str:
        """What its section does, in full; "" without a section."""
        return "" if self.section is None else self.section.text

    @functools.cached_property
    def below(self) -> tuple[Key, ...]:
        """The keys of its section."""
        return () if self.section is None else keys_of(self.section, self.path)


def alternatives(type_: Type) -> list[Type]:
    """The type and those in it: alternatives of a union, items of a list."""
    return [type_, *(below for item in type_.items for below in alternatives(item))]


@functools.cache
def configuration() -> tuple[Key, ...]:
    """Return the top-level keys of a configuration, with all keys below them."""
    defaults = {key: parts.default_name(key) for key, kind in KINDS.items() if kind.top_level}
    defaults = {key: name for key, name in defaults.items() if name} | TAKEN_FROM
    keys = keys_of(definition_of(ROOT))
    return tuple(replace(key, decided=defaults.get(key.path)) for key in keys)


@functools.cache
def keys_of(part: Definition, path: str = "") -> tuple[Key, ...]:
    """Return the keys of a part or a section; `path`: where it stands in a configuration."""
    arguments = part.arguments() if part.is_dataclass else []
    # a field `part` is a part that is written by its name
    return tuple(Key(dotted(path, each.name), each, part) for each in arguments if each.name != "part")


def in_yaml(text: str) -> str:
    """A description with the words of YAML for None, True and False.

    >>> in_yaml("None: no limit.")
    'null: no limit.'
    """
    return re.sub(r"\b(None|True|False)\b", lambda match: YAML_WORDS[match[1]], text)


def below(path: str) -> Key:
    """Return the key with this dotted path, or raise an UnknownName that says what there is.

    A key that belongs to a part is that of the default part of its kind: client.lr is the key of `sgd`.
    """
    keys, found = configuration(), None
    for word in path.split("."):
        key = next((key for key in (*keys, *_of_default_part(found)) if key.name == word), None)
        if key is None:
            raise _unknown(path, word, found, keys)
        found, keys = key, key.below
    assert found is not None
    return found


def _of_default_part(above: Key | None) -> tuple[Key, ...]:
    """The keys of the part that is used where a configuration names none; () for a key without a default part."""
    name = parts.default_name(above.kind) if above is not None and above.kind else ""
    return keys_of(parts.find(above.kind, name), above.path) if above is not None and name else ()


def _unknown(path: str, word: str, above: Key | None, keys: tuple[Key, ...]) -> UnknownName:
    """The error for a path with a word that names no key."""
    names = [key.name for key in keys]
    where = f"{path!r}: {above.path} has" if above is not None else f"{path!r}: a configuration has"
    if above is not None and above.kind:
        others = f" {names} of its own, and" if names else ""
        arguments = {
            name: [key.name for key in keys_of(part.definition)] for name, part in parts.names(above.kind).items()
        }
        having = [name for name, its in arguments.items() if word in its]
        known = {*names, *(each for its in arguments.values() for each in its)}
        which = f"{word!r} is a key of {having}" if having else f"no part has {word!r}"
        return UnknownName(
            f"{where}{others} the keys of its part; {which}; `fl show {above.kind} NAME` shows the keys of a part."
            f"{'' if having else did_you_mean(word, sorted(known))}"
        )
    if not names:
        return UnknownName(f"{where} no keys below it; `fl show config {above.path if above else ''}` shows it")
    return UnknownName(f"{where} {sorted(names)}, and not {word!r}.{did_you_mean(word, names)}")


def flat(keys: tuple[Key, ...]) -> list[Key]:
    """The keys and all keys below them, in order."""
    return [each for key in keys for each in (key, *flat(key.below))]
