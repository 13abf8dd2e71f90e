"""Commands about the registered parts: list, show, check."""

from __future__ import annotations

import dataclasses
import sys
import textwrap
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from fl import registry
from fl.cli.docstring import argument_descriptions, own_docstring, split_args, summary_line
from fl.cli.errors import EXIT_FAILED, report_errors
from fl.cli.format import two_columns
from fl.cli.options import Traceback
from fl.config.fields import fields_of, section_of
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


def _section(name: str | None) -> str:
    """The keys of a section of the configuration; those of the whole configuration for None."""
    from fl.config.config import Config

    sections = {key: cls for key in fields_of(Config) if (cls := section_of(Config, key)) is not None}
    if name is None:
        defaults = {key: repr(kind.default()) for key, kind in KINDS.items() if kind.top_level and kind.default()}
        defaults |= {"client": "the strategy's"} | {key: f"see `fl show {key}`" for key in sections}
        return _arguments(Config, defaults)
    lines = [_description(sections[name]), _arguments(sections[name])] if name in sections else []
    if name in KINDS:
        lines.append(f"`fl show {name} NAME` shows one of {', '.join(registry.names(name))}.")
    if lines:
        return textwrap.fill(lines.pop(), WIDTH) if len(lines) == 1 else "\n\n".join(lines)
    raise UnknownName(f"{name!r} is neither a section, one of {sorted(sections)}, nor a kind, one of {sorted(KINDS)}")


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


def _arguments(part: Any, defaults: Mapping[str, str] = {}) -> str:
    """Name, type and default of each constructor argument, with its description below; `defaults` replace its own."""
    fields = [field for name, field in fields_of(part).items() if name != "part"]  # written by its name
    described = argument_descriptions(part)
    width = max((len(field.name) for field in fields), default=0)
    lines = []
    for field in fields:
        lines.append(f"{field.name:<{width}}  {field.type} = {defaults.get(field.name) or _default(field)}")
        if field.name in described:
            indent = " " * (width + 4)
            lines.append(textwrap.fill(described[field.name], WIDTH, initial_indent=indent, subsequent_indent=indent))
    return "\n".join(lines)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "required" if field.default is dataclasses.MISSING else repr(field.default)
