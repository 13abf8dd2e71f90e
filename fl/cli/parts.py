"""Commands about the registered parts: list, show, check."""

from __future__ import annotations

import dataclasses
import sys
import textwrap
from typing import Annotated, Any

import typer

from fl import registry
from fl.cli.docstring import argument_descriptions, own_docstring, split_args, summary_line
from fl.cli.errors import EXIT_FAILED, report_errors
from fl.cli.format import two_columns
from fl.cli.options import Traceback
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
            found = {name: registry.lookup(each, name) for name in registry.names(each)}
            print(two_columns((f"  {name}", summary_line(part, _alone(part))) for name, part in found.items()))


def show(
    kind: Annotated[str, typer.Argument(help="Kind of part: strategy, client, codec, ...")],
    name: Annotated[str, typer.Argument(help="A registered name, path/to/file.py:Name or module:Name.")],
) -> None:
    """Show what a part does, its source, and its hyper-parameters with type, default and meaning."""
    with report_errors():
        part = registry.lookup(_known_kind(kind), name)
        print("\n\n".join(filter(None, (own_docstring(sys.modules[part.__module__]), _description(part)))) + "\n")
        if dataclasses.is_dataclass(part):
            print(_arguments(part))
        if kind == "strategy":
            print(f"\nclient algorithm: {part.client}")


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


def _known_kind(kind: str) -> str:
    if kind not in KINDS:
        raise UnknownName(f"{kind!r} is not one of {sorted(KINDS)}")
    return kind


def _alone(part: Any) -> bool:
    """Whether the part is the only one that its module registers."""
    return sum(getattr(other, "__module__", "") == part.__module__ for other in registry.parts()) == 1


def _description(part: Any) -> str:
    """The docstring without the `Args:` section, which is printed field by field."""
    return split_args(own_docstring(part))[0]


def _arguments(part: Any) -> str:
    """Name, type and default of each constructor argument, with its description below."""
    fields = [field for field in dataclasses.fields(part) if field.init]
    described = argument_descriptions(part)
    width = max((len(field.name) for field in fields), default=0)
    lines = []
    for field in fields:
        lines.append(f"{field.name:<{width}}  {field.type} = {_default(field)}")
        if field.name in described:
            indent = " " * (width + 4)
            lines.append(textwrap.fill(described[field.name], WIDTH, initial_indent=indent, subsequent_indent=indent))
    return "\n".join(lines)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "required" if field.default is dataclasses.MISSING else repr(field.default)
