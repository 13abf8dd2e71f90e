"""Overview of the runs, and the curves of accuracy, loss and other metrics of the task."""

from __future__ import annotations

from functools import partial

from fl.report.charts import Lines
from fl.report.compare import table
from fl.report.page.draw import draw_curves
from fl.report.page.runs import Runs
from fl.report.page.section import Block, Section, Table

POOLED = ("eval/", "val/", "train/")  # metrics that are means over samples, see docs/evaluation.md
MOST_COLUMNS = 6  # of metrics in the table


def overview(runs: Runs) -> Section:
    """Table of the variants, with the runs that have not ended."""
    named = [name for name in task_metrics(runs) if name.startswith("eval/")] or task_metrics(runs)[:2]
    worst = [name for name in runs.metrics if name.startswith("clients/") and name.endswith("_worst10")]
    named += sorted(worst, key=lambda name: "accuracy" not in name)[:1]
    rows = table(runs.variants, [name for name in named if _in_all_runs(runs, name)][:MOST_COLUMNS])
    note = "Metrics: last value, mean ± standard deviation over the runs of a variant, which differ in their seeds."
    blocks: list[Block] = [Table(rows, note=f"{note} MB: encoded bytes of all clients, 10^6 bytes each.")]
    for name, directory, done, rounds in runs.unfinished():
        of = f" of {rounds}" if isinstance(rounds, int) else ""
        blocks.append(f"Unfinished: {directory} ({name}) has done {done}{of} rounds; this page shows these rounds.")
    blocks += [f"Left out: {directory} has no finished round." for directory in runs.empty]
    return Section("Overview", blocks)


def _in_all_runs(runs: Runs, metric: str) -> bool:
    """Whether every run of each variant that has a metric has a value of it."""
    return all(
        any(row.get(metric) is not None for row in rows)
        for variant in runs.variants
        if variant.has(metric)
        for rows in variant.runs
    )


def task_metrics(runs: Runs) -> list[str]:
    """Names of the pooled metrics: accuracies first, losses last; of each, eval/, val/ and then train/."""

    def order(name: str) -> tuple[int, int]:
        metric = name.partition("/")[2]
        return {"accuracy": 0, "loss": 2}.get(metric, 1), [name.startswith(prefix) for prefix in POOLED].index(True)

    found = [name for name in runs.metrics if name.startswith(POOLED) and not name.endswith("_bytes")]
    return sorted(found, key=order)


def accuracy_and_loss(runs: Runs) -> Section | None:
    """A chart for each pooled metric."""
    charts: list[Lines] = []
    for metric in task_metrics(runs):
        charts.append(runs.lines(metric, draw=partial(draw_curves, runs.variants, metric)))
    return Section("Accuracy and loss", charts) if charts else None
