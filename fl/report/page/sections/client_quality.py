"""How a metric is spread over clients: worst decile over time, and all clients at the last evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from fl.report.charts import Line, Lines, mean_line
from fl.report.client_metrics import clients
from fl.report.page.draw import draw_client_metric
from fl.report.page.runs import BAND, Runs, if_written
from fl.report.page.section import Section
from fl.tasks.task import minimised

FIGURES = {"_worst10": "mean of the worst tenth of clients", "_std": "standard deviation over clients"}
FIGURES |= {"_mean": "mean over clients, each with the same weight"}
SHARES = np.linspace(0, 1, 201)


def client_quality(runs: Runs) -> Section | None:
    """Worst decile, mean and deviation over clients against a cost, and every client, worst first."""
    measured = [name.removeprefix("clients/")[: -len("_mean")] for name in runs.metrics if _is_mean(name)]
    each = {path: if_written(partial(clients, path)) or {} for variant in runs.variants for path in variant.directories}
    charts: list[Lines] = []
    for metric in sorted(measured, key=lambda name: (name != "accuracy", name == "loss")):
        every = _every_client(runs, each, metric)
        charts += [every] if every is not None else []
        for suffix, means in FIGURES.items():
            name = f"clients/{metric}{suffix}"
            if name in runs.metrics:
                charts.append(runs.lines(name, note=f"{means.capitalize()}, on their own test rows."))
    return Section("Clients", charts) if charts else None


def _is_mean(name: str) -> bool:
    return name.startswith("clients/") and name.endswith("_mean")


def _every_client(runs: Runs, each: Mapping[Path, Mapping[str, np.ndarray]], metric: str) -> Lines | None:
    """The metric of each client, worst first, over the share of clients; None if no run has it.

    `each`: metrics of the clients of each run directory.
    """
    lines: list[Line] = []
    complete = []  # variants all of whose runs have the metric
    for variant in runs.variants:
        found = []
        for directory in variant.directories:
            values = each[directory].get(metric)
            if values is not None:
                ordered = np.sort(values[np.isfinite(values)])[:: -1 if minimised(metric) else 1]
                at = np.minimum((SHARES * len(ordered)).astype(int), len(ordered) - 1)
                found += [(100 * SHARES, ordered[at])] if len(ordered) else []
        line = mean_line(variant.name, found)
        lines += [line] if line is not None else []
        complete += [variant] if len(found) == len(variant.runs) else []
    if not lines:
        return None
    band = BAND.format("all") if any(line.low is not None for line in lines) else ""
    return Lines(
        title=f"{metric} of each client",
        note=f"Clients at the last evaluation, worst first, on their own test rows. {band}".strip(),
        lines=lines,
        x_label="% of clients, worst first",
        y_label=metric,
        draw=partial(draw_client_metric, complete, metric) if complete else None,
    )
