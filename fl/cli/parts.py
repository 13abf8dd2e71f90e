"""Commands about the registered parts: new, list, show, check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fl.cli.completion import complete_kind, complete_part, complete_target
from fl.cli.errors import EXIT_FAILED, report_errors
from fl.cli.format import two_columns
from fl.cli.json_output import print_json
from fl.cli.options import AsJson, Traceback
from fl.kinds import KINDS


def list_(
    kind: Annotated[
        str | None, typer.Argument(help=f"Kind of part: {', '.join(KINDS)}.", autocompletion=complete_kind)
    ] = None,
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> None:
    """List the registered parts, each with a one-line description."""
    with report_errors(traceback):
        from fl.cli.show import known_kind
        from fl.reference import parts

        kinds = [known_kind(kind)] if kind else list(KINDS)
        found = {each: {name: entry.summary for name, entry in parts.names(each).items()} for each in kinds}
        if as_json:
            print_json(found)
            return
        for each, entries in found.items():
            print(each)
            print(two_columns((f"  {name}", summary) for name, summary in entries.items()))


def new(
    kind: Annotated[str, typer.Argument(help="strategy, client, partition, codec, experiment or project.")],
    name: Annotated[str, typer.Argument(help="A Python name in lower case, such as my_rule.")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path(),
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> None:
    """Write the first files of a part, an experiment or a project: they run, and `fl check` passes."""
    with report_errors(traceback):
        from fl.tools.new import new

        files = [str(path) for path in new(kind, name, out)]
        if as_json:
            print_json({"files": files})
        else:
            print("\n".join(files))


def show(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="Kind of part: strategy, client, codec, ...; a section: execution, evaluation, ...; or config.",
            autocompletion=complete_kind,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Argument(
            help="A registered name, path/to/file.py:Name or module:Name; with config, a key: evaluation.every.",
            autocompletion=complete_part,
        ),
    ] = None,
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> None:
    """Show what a part does and its arguments, or the keys of a configuration: type, default and meaning.

    Without a name: the keys of a section. `fl show config`: all keys; with --json, a JSON Schema for editors.
    """
    with report_errors(traceback):
        from fl.cli import show as shown

        if as_json:
            print_json(shown.as_json(kind, name))
        else:
            print(shown.as_text(kind, name))


def check(
    target: Annotated[
        str,
        typer.Argument(
            help="kind:name, name, path/to/file.py:Name or module:Name; e.g. codec:top_k",
            autocompletion=complete_target,
        ),
    ],
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> None:
    """Check a part against the laws of its kind. Exit code 1: a law does not hold."""
    with report_errors(traceback):
        from fl.check.check import check as findings_of

        findings = findings_of(target)
        passed = all(finding.ok for finding in findings)
        if as_json:
            laws = [{"law": f.sentence, "passed": bool(f.ok), "detail": f.detail} for f in findings]
            print_json({"target": target, "passed": passed, "laws": laws})
        else:
            print(two_columns((f"{'pass' if f.ok else 'FAIL'}  {f.sentence}", f.detail) for f in findings))
        if not passed:
            raise typer.Exit(EXIT_FAILED)
