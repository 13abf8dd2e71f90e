"""Commands about speed: tune, bench; and a look at the machine: doctor."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated

import typer

from fl.cli.errors import EXIT_FAILED, log_to_stderr, report_errors, require_one_of, say
from fl.cli.format import print_table, two_columns
from fl.cli.json_output import print_json
from fl.cli.options import FORMATS, AsJson, Format, Overrides, Traceback
from fl.cli.overrides import parse_overrides


def doctor(as_json: AsJson = False, traceback: Traceback = False) -> None:
    """Show what this machine offers to runs, what is missing, and the command that mends it. Exit code 1: missing."""
    with report_errors(traceback):
        from dataclasses import asdict

        from fl.tools.doctor import examine

        lines = examine()
        if as_json:
            print_json([asdict(line) for line in lines])
        else:
            mark = {"ok": "", "note": "note: ", "missing": "MISSING: "}
            rows = [(each.name, f"{mark[each.state]}{each.found}") for each in lines]
            print(two_columns(rows))
            advice = {each.name: each.advice for each in lines if each.advice}
            if advice:
                print("\nto mend it:\n" + two_columns(advice.items()))
        if any(line.state == "missing" for line in lines):
            raise typer.Exit(EXIT_FAILED)


def tune(
    config: Annotated[Path, typer.Argument(help="A YAML configuration file.")],
    overrides: Overrides = None,
    seconds: Annotated[float, typer.Option(help="Seconds of measurement, without start-up and warm-up.")] = 60.0,
    out: Annotated[Path, typer.Option(help="The file to write; it must not exist yet.")] = Path("tuned.yaml"),
    form: Format = "md",
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> None:
    """Find the fastest execution settings of a configuration on this machine, and write them to a file."""
    with report_errors(traceback):
        changes = parse_overrides(overrides)
        require_one_of(FORMATS, format=form)
        from fl.tools.tune import tune

        log_to_stderr()
        tuned = tune(config, changes, seconds, out, say)
        if as_json:
            found = {"execution": tuned.execution, "verdicts": tuned.verdicts, "tried": tuned.rows}
            print_json(found | {"impossible": tuned.impossible, "kept": tuned.kept, "out": str(out)})
            return
        if tuned.rows:
            print_table(tuned.rows, form, as_json=False)
        lines = {f"not possible: {plan}": reason for plan, reason in tuned.impossible.items()}
        lines |= {f"kept: execution.{key}": f"{value}, from the configuration" for key, value in tuned.kept.items()}
        lines |= {f"chosen {i}": verdict for i, verdict in enumerate(tuned.verdicts, 1)}
        print("\n" + two_columns((lines | {"run it with": f"fl run {out}"}).items()))


def bench(
    workloads: Annotated[
        list[str] | None, typer.Argument(help="Names of workloads (default: those with a bar to reach).")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="Approximate seconds of measurement per contestant.")] = 10.0,
    side: Annotated[
        list[Path] | None,
        typer.Option(help="Virtual environment with peers (default: .venv-peers if it exists). Repeatable."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Run only contestants whose name begins so: ours, 'ours loop', pfl, flower, ... Repeatable."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of processes of each contestant (default: the workload's).")
    ] = None,
    device: Annotated[str, typer.Option(help="Device of ours, of the bare loops and of pfl: cpu or cuda.")] = "cpu",
    tree: Annotated[
        list[Path] | None,
        typer.Option(help="Another checkout of fl, whose rounds are measured beside ours. Repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the measurements into this JSON file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Plot the measurements into this file.")] = None,
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> None:
    """Measure clients per second beside bare torch loops and other simulators. Exit code 1: a bar is missed."""
    with report_errors(traceback):
        from fl.tools import bench

        chosen = (side or (), only or (), workers, device, tree or ())
        show = functools.partial(print_json, indent=2) if as_json else None
        raise typer.Exit(bench.main(workloads or (), seconds, *chosen, out, plot, show, say))
