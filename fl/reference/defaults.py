"""The default of a key, as a configuration would write it."""

from __future__ import annotations

import ast
from typing import Any

from fl.reference.parts import name_of
from fl.reference.source import Argument, Module
from fl.reference.types import quoted

COMPUTED = "computed"  # a default that only the running program knows


def default_of(argument: Argument) -> str:
    """The default as YAML; "required" if there is none, "" for a section with defaults of its own.

    >>> from fl.reference.source import definition_of
    >>> {each.name: default_of(each) for each in definition_of("fl.data.splits:Splits").arguments()}
    {'val': '0.1', 'test': '0.0', 'clients': '0', 'per_class': 'null', 'pooled': 'false'}
    """
    node: ast.expr | None = argument.node.value
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("field", "dataclasses.field"):
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        made = given.get("default_factory")
        if isinstance(made, ast.Lambda):
            node = made.body
        else:
            node = ast.Call(made, [], []) if made is not None else given.get("default")
    return "required" if node is None else _yaml(node, argument.owner.module)


def _yaml(node: ast.expr, module: Module) -> str:
    """An expression as YAML in one line."""
    try:
        return flow(ast.literal_eval(node))
    except ValueError:
        pass
    if isinstance(node, (ast.Tuple, ast.List)):
        return f"[{', '.join(_yaml(each, module) for each in node.elts)}]"
    if isinstance(node, ast.Call):
        return _made(node, module)
    if isinstance(node, ast.Name):
        constant = module.constant(node.id)
        return COMPUTED if constant is None else _yaml(constant[1], constant[0])
    if isinstance(node, ast.BinOp):
        return _arithmetic(node)
    return COMPUTED


def _arithmetic(node: ast.BinOp) -> str:
    """The value of a computation with two numbers, or its text."""
    try:
        left, right = ast.literal_eval(node.left), ast.literal_eval(node.right)
    except ValueError:
        return COMPUTED
    if isinstance(node.op, ast.LShift) and right < 64:
        return str(left << right)
    return f"{left / right:.6g}" if isinstance(node.op, ast.Div) else ast.unparse(node)


def _made(call: ast.Call, module: Module) -> str:
    """A part or a section that is built with these arguments."""
    name = ast.unparse(call.func)
    if name in ("dict", "list", "tuple"):
        return {"dict": "{}", "list": "[]", "tuple": "[]"}[name]
    made = module.definition(name)
    part = name_of(made) if made is not None else ""
    given = [f"{keyword.arg}: {_yaml(keyword.value, module)}" for keyword in call.keywords]
    if not given:
        return part
    return "{" + ", ".join([f"name: {part}"] * bool(part) + given) + "}"


def flow(value: Any) -> str:
    """A plain value as YAML in one line.

    >>> flow((1, 2.5)), flow({"a": None, "b": ["x"]}), flow(())
    ('[1, 2.5]', '{a: null, b: [x]}', '[]')
    """
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow(key)}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(flow, value))}]"
    return quoted(value)
