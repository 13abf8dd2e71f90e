"""Reports: compare, ledger, participation and matrix of run directories, partition of a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fl.cli.errors import log_to_stderr, report_errors, require_one_of, usage_errors
from fl.cli.format import format_partition_stats, print_table
from fl.cli.json_output import print_json
from fl.cli.options import COSTS, FORMATS, AsJson, ConfigFile, Cost, Format, Overrides, Plot, Runs, Traceback, Versus
from fl.cli.overrides import parse_overrides

if TYPE_CHECKING:
    from fl.data.dataset import Dataset
    from fl.data.partition import Partition

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
    versus: Versus = None,
    plot: Plot = None,
    cost: Cost = "up",
    log: Annotated[
        bool | None, typer.Option("--log/--linear", help="Scale of the plot's x axis (default: log for a wide range).")
    ] = None,
    multicast: Annotated[
        bool, typer.Option("--multicast", help="Count what all clients receive once in MB down.")
    ] = False,
    plot_time: Annotated[Path | None, typer.Option(help="Plot where simulated time goes into this file.")] = None,
    title: Annotated[str, typer.Option(help="Title of the plots.")] = "",
    plot_clients: Annotated[
        Path | None, typer.Option(help="Plot the metric of each client, worst first, into this file.")
    ] = None,
    form: Format = "md",
    as_json: AsJson = False,
    traceback: Traceback = False,
) -> None:
    """Compare runs: metrics as mean ± deviation over seeds, and costs: bytes, hours, joules, client-rounds."""
    with report_errors(traceback):
        from fl.report.client_metrics import client_metric_name
        from fl.report.compare import default_metric, find_target, table
        from fl.report.variants import read_variants

        require_one_of(COSTS, cost=cost)
        require_one_of(FORMATS, format=form)
        with usage_errors():
            variants = read_variants(directories)
            metrics = metric or [default_metric(variants)]
            targets = [find_target(text, variants) for text in target or ()]
            rows = table(variants, metrics, targets, versus, multicast)
            if plot:
                from fl.report.plots.curves import plot_curves

                plot_curves(variants, metrics[0].partition("@")[0], cost, plot, title, log)
            if plot_time:
                from fl.report.plots.bars import plot_simulated_time

                plot_simulated_time(variants, plot_time, title)
            if plot_clients:
                from fl.report.plots.curves import plot_client_metric

                plot_client_metric(variants, client_metric_name(metrics), plot_clients, title)
        print_table(rows, form, as_json)


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
    traceback: Traceback = False,
) -> None:
    """Show the accuracy on every task after every task of a stream, with ACC, forgetting and backward transfer."""
    with report_errors(traceback):
        from fl.report.stream import accuracy_matrix
        from fl.simulation.evaluation import forgetting

        with usage_errors(OSError):
            found = [(directory.name, accuracy_matrix(directory)) for directory in directories]
        for name, values in found:
            print(name)
            for row in values:
                print("  ", " ".join("    -" if x != x else f"{x:5.3f}" for x in row))
            summary = forgetting([row[: t + 1].tolist() for t, row in enumerate(values)])
            print("  ", "  ".join(f"{key} {value:.3f}" for key, value in summary.items()))
        if plot:
            from fl.report.plots.heatmap import plot_accuracy_matrices

            plot_accuracy_matrices(found, plot)


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
