"""The command `fl`: runs, and a look at what there is.

    fl run quickstart.yaml rounds=100 seed=0..4      fl resume DIR rounds=+100      fl digest DIR
    fl list strategy      fl show strategy scaffold      fl check strategy:fedavg      fl bench
    fl tune quickstart.yaml --seconds 60 --out tuned.yaml
    fl compare runs/a runs/b --target val/accuracy=0.9 --plot curves.png      fl matrix runs/stream --plot matrix.png
    fl ledger runs/a --by client      fl participation runs/a runs/b --plot who.png
    fl partition quickstart.yaml partition.alpha=0.1 --plot who-holds-what.png
    fl flower run APP_DIR num-server-rounds=5 --nodes 100
    fl flower export quickstart.yaml app/ partition.clients=3

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 a mistake in the config or the command,
130 stopped by Ctrl-C or SIGTERM. Heavy imports are made where they are needed: `fl --help` is quick.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from fl import registry
from fl.errors import UnknownName

app = typer.Typer(
    help="Federated-learning simulator.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[key=value ...]", help="e.g. rounds=100 cohort.size=20")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print the summary as one JSON object and nothing else on stdout.")
]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show where an error came from (or FL_TRACEBACK=1).")]
FORMATS = ("md", "latex", "csv")
COSTS = ("round", "up", "down", "multicast", "hours", "joules", "work")  # of fl.report.compare
Format = Annotated[str, typer.Option("--format", help="How the table is written: md, latex (booktabs) or csv.")]
SMOKE_ROUNDS, SMOKE_COHORT = 2, 4


def main() -> None:
    app()


class Mistake(ValueError):
    """In the command itself."""


# -- runs -------------------------------------------------------------------------------------------------------------
@app.command()
def run(
    config: Annotated[str, typer.Argument(help="A YAML file.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The run directory [default: a new one under runs/].")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Two rounds of a few clients, to see that it works.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Say where the time goes, and write a trace.")] = False,
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> None:
    """Run a configuration. seed=0..4 makes five runs, one after the other."""
    with errors(traceback):
        changes = parse_overrides(overrides)
        from fl.config.config import read, resolve
        from fl.simulation import simulation

        log_to_stderr()
        seeds = _seeds(changes.get("seed"))
        resolved = []
        for seed in seeds or [None]:
            raw = read(config, changes if seed is None else changes | {"seed": seed})
            resolved.append(resolve(tiny(raw) if smoke else raw))
        if smoke:
            say(f"smoke: {SMOKE_ROUNDS} rounds of at most {SMOKE_COHORT} clients")
        outs = [out / f"seed-{seed}" if out else None for seed in seeds] or [out]
        starts = [lambda c=c, out=out, **hooks: simulation.run(c, out=out, **hooks) for c, out in zip(resolved, outs)]
        carry_out(starts, as_json, many=bool(seeds), profiled=profile)


@app.command()
def resume(directory: Path, overrides: Overrides = None, as_json: AsJson = False, traceback: Traceback = False) -> None:
    """Go on with a run from its last committed round; rounds=+100 makes it longer. A Flower app's, if it has a journal."""
    with errors(traceback):
        changes = parse_overrides(overrides)
        from fl.config.config import read
        from fl.simulation import simulation

        log_to_stderr()
        if "flower" in read(directory / "config.yaml"):
            from fl.flower.app import resumed

            carry_out_app(resumed(directory, changes), as_json)
            return
        carry_out([lambda **hooks: simulation.resume(directory, **hooks, **changes)], as_json)


def carry_out(starts: list[Callable[..., Any]], as_json: bool, many: bool = False, profiled: bool = False) -> None:
    """Runs, one after another by the same workers, with progress, and what came of them."""
    from fl.execution.workers.ray_pool import keep_workers
    from fl.tracking.profile import Profile
    from fl.tracking.progress import Progress

    summaries = []
    with Interrupts() as interrupts, keep_workers():
        for start in starts:
            if interrupts.asked:
                break
            directory = None

            def watch(event: str, value: Any) -> None:
                nonlocal directory
                if event == "ready":
                    directory = value.directory
                    interrupts.ready()
                progress(event, value)
                if profile:
                    profile(event, value)

            try:
                with Progress() as progress, Profile() if profiled else contextlib.nullcontext() as profile:
                    result = start(watch=watch, stop=lambda: interrupts.asked)
            except KeyboardInterrupt:
                committed = directory and (directory / "checkpoints" / "last.json").exists()
                say(f"aborted; go on with: fl resume {directory}" if committed else "stopped before the first round")
                raise typer.Exit(130) from None
            summaries.append(result.summary | ({"profile": profile.shares} if profile else {}))
            if not as_json:
                print(told(result.summary))
                print(beside(result), end="")
            if profile and not as_json:
                print(where_time_went(profile))
    if as_json:
        from fl.storage.run import finite

        print(json.dumps(finite({"runs": summaries} if many else summaries[0])))
    if len(summaries) < len(starts) or _interrupted(summaries[-1]):
        raise typer.Exit(130)


def where_time_went(profile: Any) -> str:
    """A profile for people."""
    from fl.report.render import markdown

    files = f"{profile.directory / 'profile.json'}, {profile.directory / 'trace.json'}"
    table = markdown(profile.table()) + "\n" if profile.rounds else ""
    return f"\n{profile}\n\n{table}{files} (for chrome://tracing or ui.perfetto.dev)"


def _interrupted(summary: dict[str, Any]) -> bool:
    return summary["reason"] == "interrupted" or any(map(_interrupted, summary.get("baselines", {}).values()))


def beside(result: Any) -> str:
    """A run and its baselines, if it has any, in a table of how clients fare."""
    if not result.baselines:
        return ""
    from fl.report.compare import Variant, markdown, table

    every = [Variant(name, [of.metrics]) for name, of in {"this run": result, **result.baselines}.items()]
    measured = set.intersection(*({key for row in v.runs[0] for key in row} for v in every))
    for metric in ("accuracy", "loss"):
        shown = [
            m for m in (f"clients/{metric}_weighted", f"clients/{metric}_worst10", f"val/{metric}") if m in measured
        ]
        if shown:
            return "\n" + markdown(table(every, shown))
    return ""


class Interrupts:
    """Ctrl-C and SIGTERM ask to stop after the round, a Ctrl-C after that aborts. Before round 0 there is nothing to finish."""

    asked = running = False

    def __enter__(self) -> Interrupts:
        self.old = {number: signal.signal(number, self._take) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)

    def ready(self) -> None:
        self.running = True
        signal.signal(signal.SIGTERM, self._take)  # ray.init has put its own in place

    def _take(self, number: int, _: Any) -> None:
        if not self.running or (self.asked and number == signal.SIGINT):
            raise KeyboardInterrupt
        self.asked = True
        os.write(2, b"stopping after this round; Ctrl-C again aborts\n")  # print() may be what was interrupted


def parse_overrides(texts: list[str] | None) -> dict[str, Any]:
    """key=value, values as in YAML."""
    changes: dict[str, Any] = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][\w.]*", key):
            raise Mistake(f"{text}: not key=value, as in rounds=100 or cohort.size=20")
        if value.startswith("+"):  # rounds=+100 is not 100
            changes[key] = value
            continue
        import yaml

        from fl.config.config import parse

        try:
            changes[key] = parse(value)
        except yaml.YAMLError as error:
            raise Mistake(f"{key}: {value!r} is not a YAML value: {getattr(error, 'problem', error)}") from None
    return changes


def _seeds(value: Any) -> list[int]:
    """[0, 1, 2] of "0..2", [] of a single seed."""
    match = re.fullmatch(r"(\d+)\.\.(\d+)", str(value))
    if match is None:
        return []
    first, last = int(match[1]), int(match[2])
    if last < first:
        raise Mistake(f"seed: {value} names none; the smaller one goes first, as in seed={last}..{first}")
    return list(range(first, last + 1))


def tiny(config: dict[str, Any]) -> dict[str, Any]:
    """The run made small enough to see in seconds whether it works."""
    cohort = config.get("cohort")
    if isinstance(cohort, dict):
        size = cohort.get("size")
        by_size = {**cohort, "size": min(size, SMOKE_COHORT)} if isinstance(size, int) else None
        config = {**config, "cohort": by_size or {"name": "uniform", "size": 2}}  # a fraction may be many
    return {**config, "rounds": SMOKE_ROUNDS}


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def told(summary: dict[str, Any]) -> str:
    """A summary for people."""
    from fl.tracking.progress import clock, megabytes

    final, done = summary["final"], summary["reason"] != "interrupted"
    metrics = {k: number(v) for k, v in final.items() if k.startswith(("eval/", "val/", "clients/"))}
    up, down = summary["total_uplink_bytes"], summary["total_downlink_bytes"]
    lines = {"ended": f"{summary['reason']} ({final.get('round', -1) + 1} rounds)"} | metrics
    lines |= {"MB up, down": f"{megabytes(up)}, {megabytes(down)}", "time": clock(summary["total_wall_seconds"])}
    lines |= {"digest": summary["digest"], "directory": summary["directory"]}
    lines["longer" if done else "go on with"] = f"fl resume {summary['directory']}" + (" rounds=+10" if done else "")
    return _aligned(lines.items())


# -- what there is ----------------------------------------------------------------------------------------------------
@app.command("list")
def list_(kind: Annotated[str | None, typer.Argument(help=f"One of {', '.join(registry.PACKAGES)}.")] = None) -> None:
    """Registered names, with what they are."""
    with errors():
        for each in [_kind(kind)] if kind else registry.PACKAGES:
            print(each)
            print(_aligned((f"  {name}", first_line(registry.lookup(each, name))) for name in registry.names(each)))


@app.command()
def show(
    kind: str, name: Annotated[str, typer.Argument(help="A registered name, path/to/file.py:Name or module:Name.")]
) -> None:
    """What a part does, where it comes from, and its hyper-parameters."""
    with errors():
        part = registry.lookup(_kind(kind), name)
        print("\n\n".join(filter(None, (_doc(sys.modules[part.__module__]), _doc(part)))) + "\n")
        if dataclasses.is_dataclass(part):
            print(_aligned((f.name, f"{f.type} = {_default(f)}") for f in dataclasses.fields(part) if f.init))
        if kind == "strategy":
            print(f"\nclient it brings: {part.client}")


@app.command()
def digest(directory: Path) -> None:
    """SHA-256 of a run's model: two runs with one digest have the same bits."""
    with errors():
        from safetensors import safe_open
        from safetensors.torch import load_file

        from fl.config.config import read, resolve
        from fl.errors import ConfigError
        from fl.storage import checkpoint
        from fl.tensors import serialise

        file, last = directory / "model.safetensors", directory / "checkpoints" / "last.json"
        if not (file.is_file() or last.is_file()):
            raise ConfigError("", f"{directory} holds neither model.safetensors nor a committed round")
        if file.is_file():
            with safe_open(file, "pt") as opened:
                written = (opened.metadata() or {}).get("round")
        if not last.is_file() or (file.is_file() and written == str(json.loads(last.read_text())["round"])):
            print(serialise.digest(load_file(file)))
        else:  # the run is not at its end, or went on since that file was written
            strategy = resolve(read(directory / "config.yaml")).strategy
            print(serialise.digest(strategy.model(checkpoint.load(directory / "checkpoints", "last")["state"])))


# -- measuring and checking -------------------------------------------------------------------------------------------
@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="A YAML file of variants, see fl/tools/sweep.py.")],
    out: Annotated[Path, typer.Option(help="Where the run directories go; those that are there are not run again.")],
    only: Annotated[list[str] | None, typer.Option(help="One of the variants; may be given again.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, each in a process of its own.")] = 1,
    form: Format = "md",
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> None:
    """Run variants of a configuration over seeds, tuned each for itself, and put them side by side."""
    with errors(traceback):
        from fl.report.compare import default_metric, table
        from fl.tools.sweep import Sweep

        _known("--format", form, FORMATS)
        what = Sweep.load(file)
        chosen = what.run(out, only or (), jobs, say)
        with mistakes():
            rows = table(chosen, what.metrics or [default_metric(chosen)])
        _tabulate(rows, form, as_json)


@app.command()
def compare(
    directories: Annotated[
        list[Path], typer.Argument(help="Run directories, or folders of runs that differ in their seed.")
    ],
    metric: Annotated[
        list[str] | None, typer.Option(help="What to compare, or M@10, M@best of it; may be given again.")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="M=VALUE", help="What it costs until a metric is there: accuracy=0.9; may be given again."
        ),
    ] = None,
    versus: Annotated[str | None, typer.Option(help="A variant that the others are paired with, seed by seed.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the first metric against its cost into this file.")] = None,
    cost: Annotated[str, typer.Option(help=f"The plot's axis: {', '.join(COSTS)} (MB, simulated hours).")] = "up",
    log: Annotated[
        bool | None, typer.Option("--log/--linear", help="The plot's axis [default: log where costs lie far apart].")
    ] = None,
    multicast: Annotated[bool, typer.Option("--multicast", help="MB down with what all receive sent once.")] = False,
    plot_time: Annotated[Path | None, typer.Option(help="Draw where simulated time went into this file.")] = None,
    title: Annotated[str, typer.Option(help="Of the plots.")] = "",
    plot_clients: Annotated[
        Path | None, typer.Option(help="Draw each client's metric, worst first, into this file.")
    ] = None,
    form: Format = "md",
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> None:
    """Put runs side by side: a metric as mean ± deviation over seeds, and the bytes, hours, joules and work it took."""
    with errors(traceback):
        from fl.report.compare import default_metric, find_target, of_clients, table, variants

        _known("--cost", cost, COSTS)
        _known("--format", form, FORMATS)
        with mistakes():
            chosen = variants(directories)
            metrics = metric or [default_metric(chosen)]
            rows = table(chosen, metrics, [find_target(text, chosen) for text in target or ()], versus, multicast)
            if plot:
                from fl.report.plots import curves

                curves(chosen, metrics[0].partition("@")[0], cost, plot, title, log)
            if plot_time:
                from fl.report.plots import time

                time(chosen, plot_time, title)
            if plot_clients:
                from fl.report.plots import clients

                clients(chosen, of_clients(metrics), plot_clients, title)
        _tabulate(rows, form, as_json)


def _known(option: str, value: str, values: tuple[str, ...]) -> None:
    if value not in values:
        raise Mistake(f"{option}: {value!r} is not one of {list(values)}")


def _tabulate(rows: list[dict[str, Any]], form: str, as_json: bool) -> None:
    from fl.report import render

    print(json.dumps(render.plain(rows)) if as_json else render.FORMATS[form](rows), end="\n" if as_json else "")


@app.command()
def ledger(
    directories: Annotated[list[Path], typer.Argument(help="Run directories, or folders of them.")],
    by: Annotated[str, typer.Option(help="A row for each group, direction or round, or what clients sent.")] = "group",
    form: Format = "md",
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> None:
    """Say what was sent: MB as raw tensors (payload), after the codec (encoded), and as Flower messages (wire)."""
    with errors(traceback):
        from fl.report.ledger import BY, tabulate

        _known("--by", by, tuple(BY))
        _known("--format", form, FORMATS)
        with mistakes():
            rows = tabulate(directories, by)
        _tabulate(rows, form, as_json)


@app.command()
def participation(
    directories: Annotated[
        list[Path], typer.Argument(help="Run directories, or folders of runs that differ in their seed.")
    ],
    by: Annotated[
        str, typer.Option(help="variant: how evenly clients took part; times, staleness: histograms.")
    ] = "variant",
    plot: Annotated[Path | None, typer.Option(help="Draw the histograms into this file.")] = None,
    title: Annotated[str, typer.Option(help="Of the plot.")] = "",
    form: Format = "md",
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> None:
    """Say who took part how often, how stale updates were, and what became of the clients."""
    with errors(traceback):
        from fl.report.compare import variants
        from fl.report.participation import BY, read

        _known("--by", by, tuple(BY))
        _known("--format", form, FORMATS)
        with mistakes():
            found = read(variants(directories))
            rows = BY[by](found)
        if plot:
            from fl.report.plots import participation

            participation(found, plot, title)
        _tabulate(rows, form, as_json)


@app.command()
def matrix(
    directories: Annotated[list[Path], typer.Argument(help="Runs of a task stream.")],
    plot: Annotated[Path | None, typer.Option(help="Draw them side by side into this file.")] = None,
    traceback: Traceback = False,
) -> None:
    """Show a task stream's accuracy on every task after every task, with ACC, forgetting and backward transfer."""
    with errors(traceback):
        from fl.report.compare import matrix as read_matrix
        from fl.simulation.evaluation import forgetting

        with mistakes(OSError):
            found = [(directory.name, read_matrix(directory)) for directory in directories]
        for name, values in found:
            print(name)
            for t, row in enumerate(values):
                print("  ", " ".join("    -" if x != x else f"{x:5.3f}" for x in row))
            summary = forgetting([row[: t + 1].tolist() for t, row in enumerate(values)])
            print("  ", "  ".join(f"{key} {value:.3f}" for key, value in summary.items()))
        if plot:
            from fl.report.plots import heatmap

            heatmap(found, plot)


@app.command()
def partition(
    config: Annotated[str, typer.Argument(help="A YAML file.")],
    overrides: Overrides = None,
    plot: Annotated[Path | None, typer.Option(help="Draw who holds what into this file.")] = None,
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> None:
    """Say how a configuration shares out its data: sizes, labels per client, distance from the whole; nothing is trained."""
    with errors(traceback):
        changes = parse_overrides(overrides)
        from fl.config.config import read, resolve
        from fl.data.partition_stats import statistics
        from fl.simulation.setup import load_data

        log_to_stderr()
        resolved = resolve(read(config, changes))
        dataset, periods = load_data(resolved)
        labels = dataset.train.get("y")
        found = [statistics(period.partition, labels) for period in periods]
        given = sum(one["rows"] for one in found)
        if as_json:
            print(json.dumps({"rows": len(dataset), "nobodys": len(dataset) - given, "periods": found}))
        else:
            rest = f"of {len(dataset)} rows {len(dataset) - given} are nobody's"
            print("\n\n".join([*map(_holdings, found), rest] if given < len(dataset) else map(_holdings, found)))
        if plot:
            from fl.report.plots import holdings

            holdings(periods[0].partition, labels, plot)


def _holdings(found: dict[str, Any]) -> str:
    """Statistics of a partition for people."""
    spread = lambda of: f"{of['min']} .. {of['median']:g} .. {of['max']}"  # noqa: E731
    lines = {"clients": found["clients"], "rows": found["rows"]}
    lines |= {"train, val, test": ", ".join(str(found[name]) for name in ("train", "val", "test"))}
    lines |= {"rows per client": f"{spread(found['size'])}  (min .. median .. max)"}
    if "labels" in found:
        lines |= {"labels per client": f"{spread(found['labels'])}  of {found['classes']}"}
        lines |= {"mean EMD": f"{found['emd']:.4f}", "mean entropy": f"{found['entropy']:.4f} nats"}
    return _aligned(lines.items())


@app.command()
def bench(
    workloads: Annotated[
        list[str] | None, typer.Argument(help="Names of workloads [default: those with bars].")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="To measure each contestant for, about.")] = 10.0,
    side: Annotated[
        list[Path] | None,
        typer.Option(help="An environment with peers [default: .venv-peers if it is there]; may be given again."),
    ] = None,
    only: Annotated[list[str] | None, typer.Option(help="ours, pfl, flower, ...; may be given again.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes to compare [default: the workload's].")] = None,
    device: Annotated[str, typer.Option(help="Of ours, bare loops and pfl.")] = "cpu",
    out: Annotated[Path | None, typer.Option(help="A file for the measurements.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw them into this file.")] = None,
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> None:
    """Measure clients per second beside bare loops and other simulators on this machine. Exit code 1: below a bar."""
    with errors(traceback):
        from fl.tools import bench

        chosen = (side or (), only or (), workers, device)
        raise typer.Exit(bench.main(workloads or (), seconds, *chosen, out, plot, as_json, say))


@app.command()
def tune(
    config: Annotated[Path, typer.Argument(help="A YAML file.")],
    overrides: Overrides = None,
    seconds: Annotated[float, typer.Option(help="To measure for, beside starting and warming up.")] = 60.0,
    out: Annotated[Path, typer.Option(help="The file to write; it must not be there yet.")] = Path("tuned.yaml"),
    form: Format = "md",
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> None:
    """Find the fastest execution of a configuration on this machine, and write it down."""
    with errors(traceback):
        changes = parse_overrides(overrides)
        _known("--format", form, FORMATS)
        from fl.tools.tune import tune

        log_to_stderr()
        tuned = tune(config, changes, seconds, out, say)
        if as_json:
            told = {"execution": tuned.execution, "verdicts": tuned.verdicts, "tried": tuned.rows}
            print(json.dumps(told | {"impossible": tuned.impossible, "kept": tuned.keep_workers, "out": str(out)}))
            return
        if tuned.rows:
            _tabulate(tuned.rows, form, as_json=False)
        lines = {f"not possible: {plan}": why for plan, why in tuned.impossible.items()}
        lines |= {
            f"kept: execution.{key}": f"{value}, as the configuration says" for key, value in tuned.keep_workers.items()
        }
        lines |= {f"chosen {i}": verdict for i, verdict in enumerate(tuned.verdicts, 1)}
        print("\n" + _aligned((lines | {"run it with": f"fl run {out}"}).items()))


@app.command()
def check(
    target: Annotated[str, typer.Argument(help="strategy:fedavg, fedavg, codec:top_k, path/to/file.py:Name ...")],
    traceback: Traceback = False,
) -> None:
    """Check a part against the laws of its kind."""
    with errors(traceback):
        from fl.check import check

        findings = check.check(target)
        print(_aligned((f"{'pass' if f.ok else 'FAIL'}  {f.law}", f.detail) for f in findings))
        if not all(f.ok for f in findings):
            raise typer.Exit(1)


# -- Flower apps ------------------------------------------------------------------------------------------------------
flower = typer.Typer(help="Flower apps on our engine, and our methods as Flower apps.", no_args_is_help=True)
app.add_typer(flower, name="flower")


@flower.command("run")
def flower_run(
    folder: Annotated[Path, typer.Argument(metavar="APP_DIR", help="Where the app's pyproject.toml is.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[key=value ...]", help="Of the app's config, e.g. num-server-rounds=5"),
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="How many [default: the app's num-supernodes, or 10].")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes; 1 is this one.")] = 1,
    seed: int = 0,
    out: Annotated[Path | None, typer.Option(help="The run directory [default: a new one under runs/].")] = None,
    journal: Annotated[
        bool, typer.Option("--journal", help="Keep every reply on disk, so that fl resume can go on.")
    ] = False,
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> None:
    """Run a Flower app as it stands."""
    with errors(traceback):
        changes = {}
        for text in overrides or ():
            key, equals, changes[key] = text.partition("=")
            if not equals:
                raise Mistake(f"{text}: not key=value, as in num-server-rounds=5")
        from fl.flower.app import load

        log_to_stderr()
        found = load(folder, changes)
        where = {"executor": "serial" if workers == 1 else "ray", "workers": workers, "seed": seed, "out": out}
        carry_out_app(found.arguments(nodes) | where | {"journal": journal}, as_json)


def carry_out_app(arguments: dict[str, Any], as_json: bool) -> None:
    """A Flower app's run, with progress, and what came of it."""
    import logging

    from fl.flower import simulate
    from fl.storage.run import finite
    from fl.tracking.progress import Progress

    logging.getLogger("flwr").propagate = False  # it has a handler of its own
    with Progress() as progress:
        result = simulate(**arguments, watch=progress)
    last = result.metrics[-1] if result.metrics else {}
    if as_json:
        print(json.dumps(finite({"directory": str(result.directory), "final": last})))
        return
    lines = {"rounds": len(result.metrics)} | {k: number(v) for k, v in last.items() if "/" in k}
    print(_aligned((lines | {"directory": result.directory}).items()))


@flower.command("export")
def flower_export(
    config: Annotated[str, typer.Argument(help="A YAML file.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new directory.")],
    overrides: Overrides = None,
    traceback: Traceback = False,
) -> None:
    """Write a Flower project that runs a configuration on SuperNodes."""
    with errors(traceback):
        from fl.config.config import read
        from fl.flower.export import export

        export(read(config, parse_overrides(overrides)), folder)
        print(f"flwr run {folder}")


# -- plumbing ---------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def errors(traceback: bool = False) -> Iterator[None]:
    """Errors as one line and an exit code."""
    try:
        yield
    except typer.Exit:
        raise
    except Exception as error:
        if traceback or os.environ.get("FL_TRACEBACK") == "1":
            raise
        from fl.errors import ConfigError, UnknownName

        mistake = isinstance(error, (Mistake, ConfigError, UnknownName))
        # a client's error brings its traceback along; its first line names client, round and stage
        text = str(error) if mistake else str(error).partition("\n")[0] or repr(error)
        say(
            f"error: {text}"
            if mistake or type(error).__module__.startswith("fl.")
            else f"error: {type(error).__name__}: {text}"
        )
        raise typer.Exit(2 if mistake else 1) from None


@contextlib.contextmanager
def mistakes(*more: type[Exception]) -> Iterator[None]:
    """What reports say of what they were asked for is a mistake in the command."""
    try:
        yield
    except (ValueError, *more) as error:
        raise Mistake(str(error)) from None


def log_to_stderr() -> None:
    import logging

    from rich.console import Console
    from rich.logging import RichHandler

    handler = RichHandler(console=Console(stderr=True), show_time=False, show_path=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def first_line(part: Any) -> str:
    """What a part is: the title of its file, or its own where a file has several."""
    module = sys.modules[part.__module__]
    alone = sum(getattr(other, "__module__", "") == part.__module__ for other in registry.parts()) == 1
    return next(filter(None, (_doc(of) for of in ((module, part) if alone else (part, module))))).partition("\n")[0]


def _doc(of: Any) -> str:
    """A docstring; the signature that `dataclass` leaves in its place is none."""
    text = of.__doc__ or ""
    return "" if text.startswith(f"{of.__name__}(") else inspect.cleandoc(text)


def _default(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "required" if field.default is dataclasses.MISSING else repr(field.default)


def _kind(kind: str) -> str:
    if kind not in registry.PACKAGES:
        raise UnknownName(f"{kind!r} is not one of {sorted(registry.PACKAGES)}")
    return kind


def _aligned(pairs: Any) -> str:
    """Two columns."""
    pairs = list(pairs)
    width = max((len(key) for key, _ in pairs), default=0)
    return "\n".join(f"{key:<{width}}  {value}".rstrip() for key, value in pairs)
