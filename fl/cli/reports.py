"""Reports: report, compare, ledger, participation and matrix of run directories, partition of a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fl.cli.errors import log_to_stderr, report_errors, require_one_of, usage_errors
from fl.cli.format import format_partition_stats, print_table
from fl.cli.json_output import print_json
from fl.cli.options import (
    AXES,
    COSTS,
    FORMATS,
    AsJson,
    ConfigFile,
    Cost,
    Format,
    Labels,
    Overrides,
    Plot,
    Runs,
    Traceback,
    Versus,
    Width,
)
from fl.cli.overrides import parse_overrides
from fl.errors import ConfigError

if TYPE_CHECKING:
    from fl.data.dataset import Dataset
    from fl.data.partition import Partition
    from fl.report.plots.style import Look

Metrics = Annotated[
    list[str] | None,
    typer.Option(
        help="Metric to compare: M (last value), M@10 (last within 10 rounds), M@last5 (mean of the last 5) or M@best. "
        "Repeatable."
    ),
]
Targets = Annotated[
    list[str] | None,
    typer.Option(metavar="M=VALUE", help="Show the cost until a metric reaches a value: accuracy=0.9. Repeatable."),
]


def compare(
    directories: Runs,
    metric: Metrics = None,
    target: Targets = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(metavar="COST=VALUE", help="Show the first metric within a budget: up=100MB,hours=2. Repeatable."),
    ] = None,
    robust: Annotated[
        bool,
        typer.Option("--robust", help="Show what runs of one method keep of the first metric when updates are lost."),
    ] = False,
    versus: Versus = None,
    plot: Plot = None,
    cost: Cost = "up",
    multicast: Annotated[
        bool, typer.Option("--multicast", help="Count what all clients receive once in MB down.")
    ] = False,
    form: Format = "md",
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> None:
    """Compare runs: metrics as mean ± deviation over seeds, and costs: bytes, hours, joules, client-rounds."""
    with report_errors(traceback):
        log_to_stderr()
        from fl.report.budget import Budget
        from fl.report.compare import default_metric, find_target, table
        from fl.report.robust import robustness
        from fl.report.variants import read_variants

        require_one_of(COSTS, cost=cost)
        require_one_of(FORMATS, format=form)
        if robust and (target or budget or versus):
            raise ConfigError("--robust", "has a table of its own; leave out --target, --budget and --versus")
        with usage_errors():
            variants = read_variants(directories)
            metrics = metric or [default_metric(variants)]
            targets = [find_target(text, variants) for text in target or ()]
            budgets = [Budget.parse(text) for text in budget or ()]
            if robust:
                rows = robustness(variants, metrics[0])
            else:
                rows = table(variants, metrics, targets, versus, multicast, budgets)
            if plot:
                from fl.report.plots.curves import plot_curves

                plot_curves(variants, metrics[0].partition("@")[0], cost, plot)
        print_table(rows, form, as_json)


def plot(
    directories: Runs,
    out: Annotated[Path, typer.Option(help="The figure; its suffix (.pdf, .svg, .png) chooses the format.")],
    kind: Annotated[
        str,
        typer.Option(
            help="curves: a metric against a cost; clients: a metric of each client, worst first; "
            "time: where simulated time goes; sweep: the metric that chooses against the values tried."
        ),
    ] = "curves",
    metric: Annotated[str | None, typer.Option(help="Metric on the y axis (default: the first that all have).")] = None,
    cost: Cost = "up",
    log: Annotated[
        bool | None, typer.Option("--log/--linear", help="Scale of the x axis (default: log for a wide range).")
    ] = None,
    band: Annotated[str, typer.Option(help="Band around a line: range, sd, none.")] = "range",
    width: Width = "6.4",
    height: Annotated[float | None, typer.Option(help="Height in inches (default: follows from the width).")] = None,
    title: Annotated[str, typer.Option(help="Title of the figure.")] = "",
    label: Labels = None,
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> None:
    """Plot runs for a paper. Curves differ in colour, dashes and markers, so that they can be told apart in print."""
    with report_errors(traceback):
        log_to_stderr()
        from fl.report.client_metrics import client_metric_name
        from fl.report.compare import default_metric
        from fl.report.plots.bars import plot_simulated_time
        from fl.report.plots.curves import BANDS, plot_client_metric, plot_curves
        from fl.report.plots.style import Look, width_of
        from fl.report.variants import read_variants

        require_one_of(("curves", "clients", "time", "sweep"), kind=kind)
        require_one_of(COSTS, cost=cost)
        require_one_of(tuple(BANDS), band=band)
        with usage_errors():
            if kind == "sweep":
                _plot_sweep(directories, out, metric, Look(width_of(width), height, title), label or ())
                return
            variants = read_variants(directories)
            labels = _labels(label or (), [variant.name for variant in variants])
            look = Look(width_of(width), height, title, labels)
            if kind == "curves":
                name = metric or default_metric(variants)
                plot_curves(variants, name.partition("@")[0], cost, out, look, log, band)  # type: ignore[arg-type]
            elif kind == "clients":
                plot_client_metric(variants, client_metric_name([metric] if metric else []), out, look)
            else:
                plot_simulated_time(variants, out, look)
        if as_json:
            print_json({"out": str(out)})
        else:
            print(out)


def _plot_sweep(directories: Sequence[Path], out: Path, metric: str | None, look: Look, labels: Sequence[str]) -> None:
    from fl.report.plots.sweep import plot_sweep
    from fl.report.sweeps import read_sweep

    if len(directories) != 1:
        raise ValueError(f"kind: 'sweep' plots the folder of one sweep, not {len(directories)} folders")
    names = [variant.name for variant in read_sweep(directories[0], metric)]
    plot_sweep(directories[0], out, replace(look, labels=_labels(labels, names)), metric)
    print(out)


def _labels(texts: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Read NAME=TEXT; each name must be that of a variant. A name may have "=" itself: "lr=0.2=small rate"."""
    labels = {}
    for text in texts:
        name = next((name for name in sorted(names, key=len, reverse=True) if text.startswith(f"{name}=")), None)
        if name is None:
            raise ValueError(f"label: {text!r} begins with none of {[f'{name}=' for name in names]}; write NAME=TEXT")
        labels[name] = text[len(name) + 1 :]
    return labels


def ledger(
    directories: Annotated[list[Path], typer.Argument(help="Run directories, or folders of run directories.")],
    by: Annotated[str, typer.Option(help="One row for each group, direction, round, or client statistic.")] = "group",
    form: Format = "md",
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> None:
    """Show communication volume: MB of raw tensors (payload), after the codec (encoded), as Flower messages (wire)."""
    with report_errors(traceback):
        from fl.report.ledger import BY, tabulate

        require_one_of(BY, by=by)
        require_one_of(FORMATS, format=form)
        with usage_errors():
            rows = tabulate(directories, by)
        print_table(rows, form, as_json)


def participation(
    directories: Runs,
    by: Annotated[
        str, typer.Option(help="variant: how evenly clients take part; times, staleness: histograms.")
    ] = "variant",
    plot: Annotated[Path | None, typer.Option(help="Plot the histograms into this file.")] = None,
    title: Annotated[str, typer.Option(help="Title of the plot.")] = "",
    form: Format = "md",
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> None:
    """Show how often clients took part, how stale their updates were, and how many were late or dropped out."""
    with report_errors(traceback):
        from fl.report.participation import BY, read_participation
        from fl.report.variants import read_variants

        require_one_of(BY, by=by)
        require_one_of(FORMATS, format=form)
        with usage_errors():
            found = read_participation(read_variants(directories))
            rows = BY[by](found)
        if plot:
            from fl.report.plots.participation import plot_participation

            plot_participation(found, plot, title)
        print_table(rows, form, as_json)


def matrix(
    directories: Annotated[list[Path], typer.Argument(help="Run directories of a task stream.")],
    plot: Annotated[Path | None, typer.Option(help="Plot the matrices side by side into this file.")] = None,
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> None:
    """Show the accuracy on every task after every task of a stream, with ACC, forgetting and backward transfer."""
    with report_errors(traceback):
        from fl.report.stream import accuracy_matrix
        from fl.tasks.statistics import forgetting

        with usage_errors(OSError):
            found = [(directory.name, accuracy_matrix(directory)) for directory in directories]
        rows = []
        for name, values in found:
            summary = forgetting([row[: t + 1].tolist() for t, row in enumerate(values)])
            rows.append({"name": name, "accuracy": values.tolist(), **summary})
            if not as_json:
                print(name)
                for row in values:
                    print("  ", " ".join("    -" if x != x else f"{x:5.3f}" for x in row))
                print("  ", "  ".join(f"{key} {value:.3f}" for key, value in summary.items()))
        if as_json:
            from fl.storage.run import finite

            print_json(finite(rows))
        if plot:
            from fl.report.plots.heatmap import plot_accuracy_matrices

            plot_accuracy_matrices(found, plot)


def report(
    directories: Runs,
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "",
    data: Annotated[
        bool, typer.Option("--data", help="Load the data sets too, for the labels of each client and the columns.")
    ] = False,
    section: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE.py:NAME", help="Add a section of your own, see docs/report.md. Repeatable."),
    ] = None,
    png: Annotated[Path | None, typer.Option(metavar="DIR", help="Write each figure as PNG into this folder.")] = None,
    pdf: Annotated[Path | None, typer.Option(metavar="DIR", help="Write each figure as PDF into this folder.")] = None,
    svg: Annotated[Path | None, typer.Option(metavar="DIR", help="Write each figure as SVG into this folder.")] = None,
    cost: Annotated[str, typer.Option(help=f"Cost on the x axis of these figures: {', '.join(AXES)}.")] = "round",
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> None:
    """Write one HTML file about runs: curves, clients, bytes, participation, timelines, settings, what methods keep."""
    with report_errors(traceback):
        from fl.report.page.report import make_sections, own_sections
        from fl.report.page.runs import Runs as ReadRuns
        from fl.report.page.write import write_figures, write_page
        from fl.storage.place import check_file, check_folder

        require_one_of(AXES, cost=cost)
        check_file("--out", out)
        if out.suffix.lower() in (".pdf", ".png", ".svg"):
            raise ConfigError("--out", f"{out}: the page is HTML; --{out.suffix.lower()[1:]} DIR writes its figures")
        folders = {
            suffix: folder for suffix, folder in (("png", png), ("pdf", pdf), ("svg", svg)) if folder is not None
        }
        for suffix, folder in folders.items():
            check_folder(f"--{suffix}", folder)
        own = own_sections(section or [])
        with usage_errors():
            runs = ReadRuns.read(directories, _loaded if data else None)
            if folders and not any(variant.has_cost(cost) for variant in runs.variants):
                runs.variants[0].require_cost(cost)
        sections = make_sections(runs, own)
        write_page(runs, sections, out, title or ", ".join(runs.names))
        written = {folder: len(write_figures(sections, folder, suffix, cost)) for suffix, folder in folders.items()}
        if as_json:
            figures = {str(folder): count for folder, count in written.items()}
            print_json({"out": str(out), "sections": len(sections), "bytes": out.stat().st_size, "figures": figures})
            return
        print(f"{out}: {len(sections)} sections, {out.stat().st_size / 1e6:.1f} MB")
        for folder, count in written.items():
            print(f"{folder}: {count} figures")


def _loaded(directory: Path) -> tuple[Dataset, Partition]:
    """Load the data set of a run and divide it again, as `fl partition` does; of a stream, as in its first period."""
    from fl.config.config import resolve
    from fl.config.reading import read
    from fl.simulation.build import load_data

    dataset, periods = load_data(resolve(read(directory / "config.yaml")))
    return dataset, periods[0].partition


def partition(
    config: ConfigFile,
    overrides: Overrides = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Plot the rows of each client by label, or the columns of each party, into this file."),
    ] = None,
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> None:
    """Show how a configuration divides its data: sizes, labels per client, distance from the whole. Trains nothing."""
    with report_errors(traceback):
        changes = parse_overrides(overrides)
        from fl.config.config import resolve
        from fl.config.reading import read
        from fl.data.partition_stats import statistics
        from fl.simulation.build import load_data

        log_to_stderr()
        dataset, periods = load_data(resolve(read(config, changes)))
        labels = dataset.train.get("y")
        if dataset.parties:
            _vertical(dataset, periods[0].partition, plot, as_json)
            return
        stats = [statistics(period.partition, labels) for period in periods]
        unassigned = len(dataset) - sum(one["rows"] for one in stats)
        if as_json:
            print_json({"rows": len(dataset), "unassigned": unassigned, "periods": stats})
        else:
            texts = [format_partition_stats(one) for one in stats]
            if unassigned:
                texts.append(f"{unassigned} of {len(dataset)} rows belong to no client")
            print("\n\n".join(texts))
        if plot:
            from fl.report.plots.partition import plot_partition

            plot_partition(periods[0].partition, labels, plot)


def _vertical(dataset: Dataset, rows: Partition, plot: Path | None, as_json: bool) -> None:
    """Show how a partition distributes columns: the columns of each party, their importance and their correlation."""
    from fl.cli.format import format_party_stats
    from fl.data.party_stats import PartyStats

    stats = PartyStats.of(dataset, rows)
    if as_json:
        print_json(stats.to_dict())
    else:
        print(format_party_stats(stats.to_dict()))
    if plot:
        from fl.report.plots.parties import plot_parties

        plot_parties(stats, plot)
