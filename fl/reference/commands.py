"""The page of docs/reference/ about the command line: every command and option, from the commands themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import click

from fl.reference.markdown import GENERATED, cell

INTRODUCTION = """Results are on stdout, everything else on stderr. With `--json` stdout holds one JSON value, also
after a mistake: `{"error": {"message": ..., "key": ..., "exit_code": 2}}`. Exit codes: 0 success, 1 failure,
2 a mistake in the command or the configuration, 130 stopped by Ctrl-C or SIGTERM.

`fl --install-completion` teaches your shell the commands, the names of parts, and the keys of configurations with their
values. `fl COMMAND --help` prints what this page holds."""


def commands_page(root: click.Group) -> str:
    """The commands below `root`, each with its arguments and options."""
    commands = list(_commands(root, "fl"))
    rows = [f"| [`{path}`](#{_slug(path)}) | {cell(_summary(command))} |" for path, command in commands]
    lines = ["# The command line", GENERATED]
    lines.append(INTRODUCTION)
    lines.append("\n".join(["| command | what it does |", "|---|---|", *rows]))
    for path, command in commands:
        lines += [f"## {path}", *_command(path, command)]
    return "\n\n".join(lines) + "\n"


def _commands(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def _command(path: str, command: click.Command) -> Iterator[str]:
    """The usage, the text, and the table of arguments and options of a command."""
    context = click.Context(command, info_name=path)
    shown = [each for each in command.params if not getattr(each, "hidden", False)]
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```text\n{path} {usage}\n```"
    yield cell(inspect.cleandoc(command.help or ""))
    rows = [f"| `{_name(each)}` | {cell(_help(each))} | {_default(each)} |" for each in shown]
    yield "\n".join(["| argument or option | meaning | default |", "|---|---|---|", *rows])


def _name(parameter: click.Parameter) -> str:
    """How a parameter is written."""
    if isinstance(parameter, click.Argument):
        return parameter.metavar or str(parameter.name).upper()
    assert isinstance(parameter, click.Option)
    names = ", ".join(parameter.opts + parameter.secondary_opts)
    flag = parameter.is_flag or parameter.count
    value = parameter.metavar or {"INT": "N", "INT RANGE": "N", "FLOAT": "X", "FLOAT RANGE": "X"}.get(
        parameter.type.name.replace("integer", "int").upper(), parameter.type.name.upper()
    )
    return names if flag else f"{names} {value}"


def _help(parameter: click.Parameter) -> str:
    return str(getattr(parameter, "help", None) or "")


def _default(parameter: click.Parameter) -> str:
    """The default in a cell; "" without one that says something."""
    if parameter.required:
        return "**required**"
    value = parameter.default
    plain = isinstance(value, (str, int, float)) and not isinstance(value, bool) and value != ""
    return f"`{value}`" if plain or (value is not None and hasattr(value, "suffix")) else ""


def _summary(command: click.Command) -> str:
    return inspect.cleandoc(command.help or "").partition("\n")[0]


def _slug(path: str) -> str:
    return path.replace(" ", "-")
