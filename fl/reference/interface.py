"""The page of docs/reference/ about the Python interface: what `from fl import ...` offers."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import fl
from fl.reference.docstring import split_args
from fl.reference.markdown import GENERATED, cell, fenced
from fl.reference.source import Definition, Module, module_source

# what a program that runs experiments needs; all other names are for methods
RUNS = ("run", "rounds", "resume", "evaluate", "Rounds", "Result", "Callback", "Run", "ConfigError", "register")

INTRODUCTION = """All names come from one package: `from fl import run, Strategy, Params`. [python.md](../python.md)
shows how a program uses them, and [methods.md](../methods.md) how a method is written."""


def interface_page() -> str:
    """The functions and classes that `fl` offers, with their arguments and methods."""
    others = [name for name in fl.__all__ if name not in (*RUNS, "__version__")]
    lines = ["# The Python interface", GENERATED]
    lines.append(INTRODUCTION)
    lines += ["## Run, resume and read", *(block for name in RUNS for block in _name(name, methods=True))]
    lines += ["## Write a method", *(block for name in others for block in _name(name, methods=False))]
    return "\n\n".join(lines) + "\n"


def _name(name: str, methods: bool) -> Iterator[str]:
    """The blocks of one public name; `methods`: with a section for each method of a class."""
    home = fl._HOMES[name]
    module = module_source(f"{home}.{name}")
    if module is not None:
        yield f"### module {name}"
        yield f"`{home}.{name}`"
        yield fenced(module.docstring)
        yield _functions(module)
        return
    where = module_source(home)
    assert where is not None, home
    definition, alias = where.definition(name), where.constant(name)
    is_class = definition is not None and isinstance(definition.node, ast.ClassDef)
    yield f"### {'class ' * is_class}{name}"  # `run` and `Run` have different anchors
    if definition is not None:
        yield from _definition(definition, name, methods)
    elif alias is not None:
        yield f"```py\n{name} = {ast.unparse(alias[1])}\n```"


def _definition(definition: Definition, title: str, methods: bool) -> Iterator[str]:
    """The signature, the text and the arguments of a class or a function."""
    yield f"```py\n{signature(definition, title)}\n```"
    text, arguments = split_args(definition.docstring)
    yield fenced(text)
    if arguments:
        rows = [f"| `{name}` | {cell(meaning)} |" for name, meaning in arguments.items()]
        yield "\n".join(["| argument | meaning |", "|---|---|", *rows])
    members = [node for node in definition.node.body if isinstance(node, ast.FunctionDef) and node.name[0] != "_"]
    if methods:
        for node in members:
            yield f"#### {title}.{node.name}"
            yield from _definition(Definition(definition.module, node), f"{title}.{node.name}", methods=False)
    elif isinstance(definition.node, ast.ClassDef) and members:
        rows = [
            f"| `{node.name}` | {cell((ast.get_docstring(node) or '').partition(chr(10))[0])} |" for node in members
        ]
        yield "\n".join(["| method or property | what it does |", "|---|---|", *rows])


def _functions(module: Module) -> str:
    """A table of the public functions and classes of a module."""
    found = {name: each for name, each in module.own.items() if name[0] != "_"}
    rows = [f"| `{name}` | {cell(each.docstring.partition(chr(10))[0])} |" for name, each in found.items()]
    return "\n".join(["| name | what it is |", "|---|---|", *rows])


def signature(definition: Definition, title: str) -> str:
    """How a class or a function is called.

    >>> from fl.reference.source import definition_of
    >>> signature(definition_of("fl.errors:dotted"), "dotted")
    'dotted(path: str, key: object) -> str'
    """
    node = definition.node
    if isinstance(node, ast.ClassDef):
        if definition.is_dataclass:
            fields = [_field(each.name, each.type, each.default) for each in definition.arguments()]
            return _call(title, fields)
        made = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        return f"class {title}" if made is None else _call(title, _parameters(made))
    if any(ast.unparse(each).endswith("property") for each in node.decorator_list):
        return f"{title}: {ast.unparse(node.returns)}" if node.returns is not None else title
    returns = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    return _call(title, _parameters(node)) + returns


def _call(title: str, arguments: list[str]) -> str:
    """A call in one line, or with a line for each argument."""
    line = f"{title}({', '.join(arguments)})"
    return line if len(line) <= 100 else f"{title}(\n    " + ",\n    ".join(arguments) + ",\n)"


def _field(name: str, type_: str, default: str) -> str:
    return f"{name}: {type_}" + ("" if default == "required" else f" = {default}")


def _parameters(node: ast.FunctionDef) -> list[str]:
    """The parameters of a function as text, without self."""
    arguments = node.args
    found: list[str] = []
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
    for position, (each, default) in enumerate(zip(plain, defaults)):
        if each.arg not in ("self", "cls"):
            found.append(_parameter(each, default))
        if arguments.posonlyargs and position == len(arguments.posonlyargs) - 1:
            found.append("/")
    if arguments.vararg is not None:
        found.append(f"*{_parameter(arguments.vararg, None)}")
    elif arguments.kwonlyargs:
        found.append("*")
    found += [_parameter(each, default) for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults)]
    if arguments.kwarg is not None:
        found.append(f"**{_parameter(arguments.kwarg, None)}")
    return found


def _parameter(argument: ast.arg, default: ast.expr | None) -> str:
    text = argument.arg if argument.annotation is None else f"{argument.arg}: {ast.unparse(argument.annotation)}"
    return text if default is None else f"{text} = {ast.unparse(default)}"
