"""The types of configuration keys: read from annotations, told in words.

type_of(argument) -> Type          words(type, limit) -> "whole number, 1 or more, or null"
"""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass
from typing import Literal

from fl.kinds import KINDS
from fl.reference.limits import Limit
from fl.reference.nouns import noun
from fl.reference.source import Argument, Definition, Module, definition_of

Form = Literal["integer", "number", "boolean", "string", "null", "any", "choice", "list", "tuple", "mapping", "union"]
PLAIN: dict[str, Form] = {
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "str": "string",
    "None": "null",
    "Any": "any",
}
WORDS = {
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "string": "text",
    "null": "null",
    "any": "any value",
}


@dataclass(frozen=True)
class Type:
    """The type of a key.

    Args:
        form: what a value is; "part" and "section" are mappings whose keys are those of a class.
        values: the allowed values of a "choice".
        items: the type of the items of a "list" or a "mapping"; the types of the items of a "tuple"; the alternatives
            of a "union".
        kind: the kind of a "part".
        section: the class of a "section".
    """

    form: Form | Literal["part", "section"]
    values: tuple[object, ...] = ()
    items: tuple[Type, ...] = ()
    kind: str = ""
    section: Definition | None = None


def type_of(argument: Argument) -> Type:
    """Return the type of an argument."""
    return _type(argument.node.annotation, argument.owner.module)


def _type(node: ast.expr, module: Module) -> Type:
    """The type of an annotation in a module. An unknown name may be any value."""
    match node:
        case ast.Constant(value=None):
            return Type("null")
        case ast.BinOp(op=ast.BitOr()):
            return Type("union", items=tuple(_type(each, module) for each in _alternatives(node)))
        case ast.Subscript(value=ast.Name(id="Literal")):
            items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            return Type("choice", values=tuple(ast.literal_eval(each) for each in items))
        case ast.Subscript(value=ast.Name(id="tuple" | "list")):
            items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            several = len(items) == 1 or ast.unparse(items[-1]) == "..."
            types = tuple(_type(each, module) for each in items)
            return Type("list", items=types[:1]) if several else Type("tuple", items=types)
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[_, item])):
            return Type("mapping", items=(_type(item, module),))
        case ast.Name() | ast.Attribute():
            return _named(ast.unparse(node), module)
    return Type("any")


def _alternatives(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp):
        return [*_alternatives(node.left), *_alternatives(node.right)]
    return [node]


def _named(name: str, module: Module) -> Type:
    """The type that a name means: a plain one, a part, a section, or another name of a type."""
    if name in PLAIN:
        return Type(PLAIN[name])
    alias = module.constant(name)
    if alias is not None:
        return _type(alias[1], alias[0])
    found = module.definition(name)
    if found is None:
        return Type("any")
    kind = _kinds().get((str(found.module.path), found.node.name), "")
    if kind:
        return Type("part", kind=kind)
    return Type("section", section=found) if found.is_dataclass else Type("any")


@functools.cache
def _kinds() -> dict[tuple[str, str], str]:
    """The kinds, by the files and names of their base classes and section classes."""
    classes = [(kind.name, each) for kind in KINDS.values() for each in (kind.base, kind.section) if each]
    found = [(name, definition_of(each)) for name, each in classes]
    return {(str(each.module.path), each.node.name): name for name, each in found}


def section_of_kind(kind: str) -> Definition | None:
    """The class of the options that stand beside the arguments of a part, as of `data` and `model`; None without."""
    return definition_of(KINDS[kind].section) if KINDS[kind].section else None


# -- words ------------------------------------------------------------------------------------------------------------
def words(type_: Type, limit: Limit = Limit(), several: bool = False) -> str:
    """Say in words which values a type has; `several`: in the plural."""
    form = type_.form
    if form == "union":
        return _union(type_, limit, several)
    if form == "choice" or (limit.values and form == "string"):
        return _choice(type_.values or limit.values, several)
    if form == "list":
        return f"{'lists' if several else 'list'} of {words(type_.items[0], limit, several=True)}"
    if form == "tuple":
        return f"[{', '.join(words(item, limit) for item in type_.items)}]"
    if form == "mapping":
        return f"mapping of names to {words(type_.items[0], limit, several=True)}"
    if form == "part":
        return f"{noun(type_.kind, several)} (`fl show {type_.kind}`)"
    if form == "section":
        return "mappings with the keys below" if several else "mapping with the keys below"
    if form in ("integer", "number"):
        return WORDS[form] + "s" * several + limit.words(whole=form == "integer")
    return WORDS[form]


def _union(type_: Type, limit: Limit, several: bool) -> str:
    """The alternatives of a union: a number that may be whole is a number; lists and null come last."""
    arms = [arm for arm in type_.items if arm.form != "null"]
    if "number" in {arm.form for arm in arms}:
        arms = [arm for arm in arms if arm.form != "integer"]
    arms.sort(key=lambda arm: arm.form in ("list", "section"))
    told = [words(arm, limit, several) for arm in arms]
    told += ["null"] * any(arm.form == "null" for arm in type_.items)
    return ("; or " if any("," in each for each in told) else " or ").join(told)


def _choice(values: tuple[object, ...], several: bool) -> str:
    """The values of a choice."""
    told = [quoted(value) for value in values if value is not None]
    if len(told) == 1:
        return told[0]
    return f"{'any' if several else 'one'} of {', '.join(told)}"


def quoted(value: object) -> str:
    """A value as YAML writes it in a flow.

    >>> quoted("all"), quoted(True), quoted(None), quoted("")
    ('all', 'true', 'null', '""')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if value == "":
        return '""'
    return str(value)
