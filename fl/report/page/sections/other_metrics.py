"""Metrics that a method reports itself: privacy that was spent, affinities of tasks, and everything else."""

from __future__ import annotations

import re

import numpy as np

from fl.report.charts import Heatmap
from fl.report.page.runs import Runs
from fl.report.page.section import Block, Section
from fl.report.page.sections.overview import POOLED
from fl.report.variants import Variant

ENGINE = {"round", "dropped", "busy_seconds", "cohort_size", "wall_seconds", "discarded"}  # columns of each run
ENGINE_PREFIXES = ("simulated_", "clients_", "uplink_", "downlink_", "affinity/", "stream/")
TASK = re.compile(r"task\d+/")  # of a stream, whose section has the matrix of accuracies
PRIVACY = re.compile(r"privacy/|(virtual_)?epsilon|(clip_bound|clipped|noise_std|signal_to_noise)$")
MOST_CHARTS = 60


def privacy(runs: Runs) -> Section | None:
    """Epsilon, and other metrics of `privacy:`, against a cost."""
    named = _privacy_metrics(runs)
    if not named:
        return None
    blocks: list[Block] = [runs.lines(name) for name in named]
    for variant in runs.variants:
        section = variant.configs[0].get("privacy")
        if isinstance(section, dict):
            facts = ", ".join(f"{key} {section[key]}" for key in ("epsilon", "delta", "unit") if section.get(key))
            blocks.append(f"{variant.name}: {facts or 'see privacy: in the configuration'}.")
    return Section("Privacy spent", blocks)


def _privacy_metrics(runs: Runs) -> list[str]:
    """Metrics of the section on privacy, epsilon first; none if no run has an epsilon, or a name in privacy/."""
    named = sorted(filter(PRIVACY.match, runs.metrics), key=lambda name: "epsilon" not in name)
    return named if any("epsilon" in name or name.startswith("privacy/") for name in named) else []


def affinity(runs: Runs) -> Section | None:
    """The matrix of the metrics affinity/SOURCE/TARGET, at the last round that has them."""
    charts = []
    for variant in runs.variants:
        found = _affinities(variant)
        if not found:
            continue
        tasks = list(dict.fromkeys(task for pair in found for task in pair))
        values = np.array([[found.get((source, target), np.nan) for target in tasks] for source in tasks])
        charts.append(
            Heatmap(
                title=f"Affinity: {variant.name}",
                note="What a step for the task of the row does for the loss of the task of the column; mean over runs.",
                values=values,
                x_label="target",
                y_label="source",
                x_names=tasks,
                y_names=tasks,
                signed=True,
            )
        )
    return Section("Affinity of tasks", charts) if charts else None


def _affinities(variant: Variant) -> dict[tuple[str, str], float]:
    """(source, target) -> last value, mean over runs."""
    last: dict[tuple[str, str], list[float]] = {}
    for rows in variant.runs:
        of_run = {key: value for row in rows for key, value in row.items() if key.startswith("affinity/")}
        for key, value in of_run.items():
            pair = tuple(key.split("/")[1:])
            if len(pair) == 2 and value is not None:
                last.setdefault((pair[0], pair[1]), []).append(value)
    return {pair: float(np.mean(values)) for pair, values in last.items()}


def other_metrics(runs: Runs) -> Section | None:
    """A chart for each metric that no other section shows: what a strategy or a client algorithm reports itself."""
    private = _privacy_metrics(runs)
    shown = [name for name in runs.metrics if name not in private and not _is_shown_elsewhere(name)]
    blocks: list[Block] = [runs.lines(name) for name in shown[:MOST_CHARTS]]
    if len(shown) > MOST_CHARTS:
        blocks.append(f"Without a chart: {', '.join(shown[MOST_CHARTS:])}.")
    return Section("Other metrics", blocks) if blocks else None


def _is_shown_elsewhere(name: str) -> bool:
    if name in ENGINE or TASK.match(name):
        return True
    if name.startswith(ENGINE_PREFIXES):
        return not name.endswith("values_bytes")
    pooled = name.startswith(POOLED) and not name.endswith("_bytes")
    return pooled or (name.startswith("clients/") and name.endswith(("_mean", "_worst10", "_std")))
