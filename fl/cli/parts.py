"""Commands about the registered parts: list, show, check."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from fl.cli import source
from fl.cli.errors import EXIT_FAILED, report_errors
from fl.cli.format import two_columns
from fl.cli.options import Traceback
from fl.cli.source import Definition
from fl.errors import UnknownName
from fl.kinds import KINDS

WIDTH = 100  # columns of a description


def list_(
    kind: Annotated[str | None, typer.Argument(help=f"Kind of part: {', '.join(KINDS)}.")] = None,
) -> None:
    """List the registered parts, each with a one-line description."""
    with report_errors():
        for each in [_known_kind(kind)] if kind else KINDS:
            print(each)
            print(two_columns((f"  {name}", part.summary) for name, part in source.registered(each).items()))


def new(
    kind: Annotated[str, typer.Argument(help="strategy, client, partition, codec, experiment or project.")],
    name: Annotated[str, typer.Argument(help="A Python name in lower case, such as my_rule.")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path(),
) -> None:
    """Write the first files of a part, an experiment or a project: they run, and `fl check` passes."""
    with report_errors():
        from fl.tools.new import new

        for path in new(kind, name, out):
            print(path)


def show(
    kind: Annotated[
        str | None,
        typer.Argument(help="Kind of part: strategy, client, codec, ...; or a section: execution, evaluation, ..."),
    ] = None,
    name: Annotated[str | None, typer.Argument(help="A registered name, path/to/file.py:Name or module:Name.")] = None,
) -> None:
    """Show what a part does, its source, and its arguments with type, default and meaning.

    Without a name: the keys of a section of the configuration. Without a kind: the top-level keys.
    """
    with report_errors():
        if kind is None or name is None:
            print(_section(kind))
            return
        part = source.find(_known_kind(kind), name)
        print("\n\n".join(filter(None, (part.module.docstring, part.text))) + "\n")
        if part.is_dataclass:
            print(_arguments(part))
        if kind == "strategy":
            print(f"\nclient algorithm: {part.value('client')}")


def check(
    target: Annotated[
        str, typer.Argument(help="kind:name, name, path/to/file.py:Name or module:Name; e.g. codec:top_k")
    ],
    traceback: Traceback = False,
) -> None:
    """Check a part against the laws of its kind. Exit code 1: a law does not hold."""
    with report_errors(traceback):
        from fl.check.check import check as findings_of

        findings = findings_of(target)
        print(two_columns((f"{'pass' if f.ok else 'FAIL'}  {f.sentence}", f.detail) for f in findings))
        if not all(f.ok for f in findings):
            raise typer.Exit(EXIT_FAILED)


def _section(name: str | None) -> str:
    """The keys of a section of the configuration; those of the whole configuration for None."""
    config = source.definition_of("fl.config.config:Config")
    sections = {each.name: found for each in config.arguments() if (found := _section_class(config, each.name))}
    if name is None:
        defaults = {key: repr(source.default_name(key)) for key, kind in KINDS.items() if kind.top_level}
        defaults = {key: value for key, value in defaults.items() if value != "''"}
        defaults |= {"client": "the strategy's"} | {key: f"see `fl show {key}`" for key in sections}
        return _arguments(config, defaults)
    lines = [sections[name].text, _arguments(sections[name])] if name in sections else []
    if name in KINDS:
        lines.append(f"`fl show {name} NAME` shows one of {', '.join(source.registered(name))}.")
    if lines:
        return textwrap.fill(lines.pop(), WIDTH) if len(lines) == 1 else "\n\n".join(lines)
    raise UnknownName(f"{name!r} is neither a section, one of {sorted(sections)}, nor a kind, one of {sorted(KINDS)}")


def _section_class(config: Definition, key: str) -> Definition | None:
    """The dataclass of a section; None for a part without options, or a plain value."""
    for found in config.annotation(key):
        bases = [source.definition_of(kind.base) for kind in KINDS.values()]
        if found.is_dataclass and found not in bases:
            return found
    return None


def _known_kind(kind: str) -> str:
    if kind not in KINDS:
        raise UnknownName(f"{kind!r} is not one of {sorted(KINDS)}")
    return kind


def _arguments(part: Definition, defaults: Mapping[str, str] = {}) -> str:
    """Name, type and default of each argument, with its description below; `defaults` replace its own."""
    arguments = [argument for argument in part.arguments() if argument.name != "part"]  # written by its name
    width = max((len(argument.name) for argument in arguments), default=0)
    lines = []
    for each in arguments:
        lines.append(f"{each.name:<{width}}  {each.type} = {defaults.get(each.name) or each.default}")
        if each.description:
            indent = " " * (width + 4)
            lines.append(textwrap.fill(each.description, WIDTH, initial_indent=indent, subsequent_indent=indent))
    return "\n".join(lines)
