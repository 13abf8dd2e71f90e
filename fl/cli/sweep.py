"""The command sweep, and its arguments: KEY=A,B and KEY=log(LOW, HIGH) are searched, KEY=VALUE is set."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fl.cli.errors import log_to_stderr, report_errors, require_one_of, say, usage_errors
from fl.cli.format import print_table
from fl.cli.interrupts import Interrupts
from fl.cli.options import COSTS, FORMATS, AsJson, Cost, Format, Traceback, Versus
from fl.cli.overrides import parse_overrides, parse_seed_range
from fl.errors import ConfigError

if TYPE_CHECKING:
    from fl.report.variants import Variant
    from fl.tools.sweep.sweep import Sweep

GOES_ON = "stopped; the same command goes on"
_RANGE = re.compile(r"\w+\s*\([^()]*\)")  # log(1e-4, 1); the sweep checks the word and the numbers
SEARCHES = ("grid", "random", "asha", "optuna")


def sweep(
    file: Annotated[Path, typer.Argument(help="A YAML configuration file, or a file of variants (docs/sweeps.md).")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[key=values ...]",
            help="Values to try: client.lr=0.03,0.1 or 'client.lr=log(1e-3, 1)', uniform(0, 1), int(1, 10); "
            "strategy=NAME,NAME are variants; seed=0..2; key=value holds for all.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run directories, by default runs/FILE. Finished runs are reused.")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Number of settings to try for each variant.")] = None,
    search: Annotated[
        str | None,
        typer.Option(
            help="grid: all combinations; random; asha: random, and trials that are behind stop early; "
            "optuna: learns from finished trials. Default: grid, or random with --samples."
        ),
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="Metric that chooses a setting, at the end of a run (default: val/accuracy).")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Number of seeds of a chosen setting (default: 1). The first one tunes.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="Run only this variant. Repeatable.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Number of runs at a time, each in its own process.")] = 1,
    versus: Versus = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Plot into this file: the metric that chooses against the values that were tried; "
            "without any, the first metric against a cost."
        ),
    ] = None,
    cost: Cost = "up",
    form: Format = "md",
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress; print only the table.")] = False,
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> None:
    """Run variants of a configuration over several seeds, tune each variant, and compare them in a table."""
    with report_errors(traceback, GOES_ON):
        require_one_of(COSTS, cost=cost)
        require_one_of(FORMATS, format=form)
        if search is not None:
            require_one_of(SEARCHES, search=search)
        tuned, fixed = parse_values(arguments or ())
        chosen_seeds = _seeds(tuned, fixed, seeds)
        from fl.storage.place import check_folder
        from fl.tools.sweep.reading import load

        log_to_stderr()
        loaded = load(file, tuned, fixed, seeds=chosen_seeds, search=search, samples=samples, by=by)
        if versus is not None:
            require_one_of(only or list(loaded.variants), versus=versus)
        folder = out or Path("runs") / file.name.removesuffix(".yaml").removesuffix(".sweep")
        check_folder("--out", folder)
        if plot is not None:
            from fl.report.plots.style import check_figure

            check_figure("--plot", plot)
        with Interrupts() as interrupts:
            told = _no_line if quiet else say
            variants = loaded.run(folder, only or (), jobs, told, interrupts, progress=False if quiet else None)
        _report(loaded, folder, variants, versus, plot, cost, form, as_json)


def _no_line(text: str) -> None:
    """Print nothing."""


def _seeds(tuned: dict[str, Any], fixed: dict[str, Any], number: int | None) -> list[int] | int | None:
    """Take the seeds out of the arguments: seed=3, seed=0..2 or seed=0,1,2; or their number, from --seeds."""
    given = [each.pop("seed") for each in (tuned, fixed) if "seed" in each]
    if given and number is not None:
        raise ConfigError("--seeds", f"{number} beside seed={given[0]}; give one of them")
    if not given:
        return number
    value = given[0]
    return parse_seed_range(value) or (value if isinstance(value, list) else [value])


def _report(
    loaded: Sweep,
    out: Path,
    variants: Sequence[Variant],
    versus: str | None,
    plot: Path | None,
    cost: str,
    form: str,
    as_json: bool,
) -> None:
    """Print the table of a sweep, and sentences about settings at an edge; plot it."""
    from fl.config.space import edge_of, edge_sentences
    from fl.report.compare import default_metric, table
    from fl.report.sweep_folder import CHOSEN, label, read_record

    chosen = read_record(out / CHOSEN)
    tuned = [variant.name for variant in variants if loaded.is_tuned(variant.name)]
    with usage_errors():
        metrics = loaded.metrics or [default_metric(variants)]
        rows = table(variants, metrics, versus=versus)
        if plot and tuned:
            from fl.report.plots.sweep import plot_sweep

            plot_sweep(out, plot, only=tuned)
        elif plot:
            from fl.report.plots.curves import plot_curves

            plot_curves(variants, metrics[0].partition("@")[0], cost, plot)
    if tuned:
        rows = [_with_choice(row, loaded, chosen[row["name"]], label, edge_of) for row in rows]
    print_table(rows, form, as_json)
    for name in tuned:
        for sentence in edge_sentences(name, chosen[name], loaded.space_of(name)):
            say(sentence)


def _with_choice(row: Mapping[str, Any], loaded: Sweep, setting: Any, label: Any, edge_of: Any) -> dict[str, Any]:
    """A row with the chosen setting, and the keys whose value lies at the edge of what was searched."""
    space = loaded.space_of(row["name"]) if loaded.is_tuned(row["name"]) else {}
    ends = [f"{key} {side}" for key, values in space.items() if (side := edge_of(setting[key], values))]
    rest = {key: value for key, value in row.items() if key != "name"}
    return {"name": row["name"], "chosen": label(setting) if space else "", "edge": ", ".join(ends), **rest}


def parse_values(arguments: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(tuned, fixed) from arguments key=value. Several values are separated by commas outside brackets and quotes.

    >>> parse_values(["client.lr=0.1,1e-2", "rounds=5", "model.hidden=[64,32]", "a.b=log(1e-4, 1)"])
    ({'client.lr': [0.1, 0.01], 'a.b': 'log(1e-4, 1)'}, {'rounds': 5, 'model.hidden': [64, 32]})
    """
    tuned: dict[str, Any] = {}
    fixed: dict[str, Any] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        parts = _split(text)
        if equals and not text.strip():
            raise ConfigError(key, f"no value; write {key}=VALUE, or {key}=A,B to try several; null is a value, too")
        if key in tuned or key in fixed:
            raise ConfigError(key, f"given twice; write all its values in one argument: {key}=A,B")
        if equals and _RANGE.fullmatch(text):
            tuned[key] = text
        elif equals and len(parts) > 1:
            if not all(part.strip() for part in parts):
                raise ConfigError(key, f"{text!r} has an empty value between its commas")
            tuned[key] = [parse_overrides([f"{key}={part.strip()}"])[key] for part in parts]
        else:
            fixed |= parse_overrides([argument])
    return tuned, fixed


def _split(text: str) -> list[str]:
    """Split at commas outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for c in text:
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"":
            quote = c
        depth += (c in "[{(") - (c in ")}]") if not quote else 0
        if c == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += c
    return parts
