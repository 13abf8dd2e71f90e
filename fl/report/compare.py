"""Runs side by side: a metric against what it cost, as the mean and spread over seeds.

A variant is a run directory, a folder of run directories (one per seed), or run directories of one name but for the seed at its
end (`fedavg-s0`, `fedavg-s1`, `fedavg-seed2`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fl.config import parse
from fl.storage.run import read_metrics

Row = Mapping[str, Any]
PREFERRED = ("eval/accuracy", "clients/accuracy_weighted", "val/accuracy", "eval/loss", "train/loss")


@dataclass(frozen=True)
class Variant:
    """Runs that differ in their seeds; of each the rows of its metrics."""

    name: str
    runs: Sequence[Sequence[Row]]

    def last(self, metric: str) -> np.ndarray:
        """(runs,): the metric when it was last measured; of `metric@10`, within the first 10 rounds."""
        name, _, rounds = metric.partition("@")
        return np.array([_measured(rows, name, float(rounds or "inf"))[-1] for rows in self.runs])

    def curves(self, metric: str, cost: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per run (cost so far, metric) wherever it was measured; cost: round, up, down (MB over all clients)."""
        found = []
        for rows in self.runs:
            costs = np.array([row["round"] + 1 for row in rows]) if cost == "round" else megabytes(rows, cost)
            at = [i for i, row in enumerate(rows) if row.get(metric) is not None]
            found.append((costs[at], np.array([rows[i][metric] for i in at])))
        return found


def _measured(rows: Sequence[Row], metric: str, rounds: float) -> list[float]:
    return [row[metric] for row in rows if row.get(metric) is not None and row["round"] < rounds]


def megabytes(rows: Sequence[Row], direction: str) -> np.ndarray:
    """(rounds,): encoded MB (10^6 bytes) sent up or down until then."""
    return np.cumsum([row[f"{direction}link_bytes"] for row in rows]) / 1e6


def variants(directories: Iterable[Path]) -> list[Variant]:
    """See the module."""
    found: dict[str, list[Path]] = {}
    for directory in directories:
        runs = [directory] if (directory / "metrics.jsonl").is_file() else sorted(directory.glob("*/metrics.jsonl"))
        if not runs:
            raise ValueError(f"{directory} is no run directory, and holds none: there is no metrics.jsonl")
        for run in runs:
            path = run if run == directory else run.parent
            name = directory.name if run != directory else re.sub(r"[-_]?s(eed)?\d+$", "", directory.name)
            found.setdefault(name or directory.name, []).append(path)
    return [Variant(name, [read_metrics(path) for path in paths]) for name, paths in found.items()]


def default_metric(chosen: Sequence[Variant]) -> str:
    """The first of `PREFERRED` that all runs have."""
    for metric in PREFERRED:
        if all(any(metric in row for row in rows) for variant in chosen for rows in variant.runs):
            return metric
    raise ValueError(f"metric: the runs have none of {PREFERRED} in common; name one")


def table(chosen: Sequence[Variant], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """A row per variant: name, runs, rounds, (mean, standard deviation) of each metric, MB up and down in a run."""
    rows = []
    for variant in chosen:
        row: dict[str, Any] = {"name": variant.name, "runs": len(variant.runs)}
        row["rounds"] = max(rows_[-1]["round"] for rows_ in variant.runs) + 1
        for metric in metrics:
            name, _, end = metric.partition("@")
            if not all(_measured(rows_, name, float(end or "inf")) for rows_ in variant.runs):
                known = sorted({key for rows_ in variant.runs for r in rows_ for key in r if "/" in key})
                raise ValueError(f"metric: {metric!r} is not in all runs of {variant.name}, which have {known}")
            values = variant.last(metric)
            row[metric] = (float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None)
        for direction in ("up", "down"):
            row[f"MB {direction}"] = float(np.mean([megabytes(rows_, direction)[-1] for rows_ in variant.runs]))
        rows.append(row)
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """A table as text, with mean ± deviation."""
    header = list(rows[0])
    lines = [" | ".join(header), " | ".join("---" if name == "name" else "---:" for name in header)]
    lines += [" | ".join(_cell(row[name]) for name in header) for row in rows]
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, tuple):
        mean, deviation = value
        return f"{mean:.3f}" if deviation is None else f"{mean:.3f} ± {deviation:.3f}"
    return (
        f"{value:.3g}"
        if isinstance(value, float) and value < 1000
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )


def matrix(directory: Path) -> np.ndarray:
    """(T, T): a[t, s], the accuracy on task s after task t of a stream; NaN for tasks not met yet."""
    stream = parse((directory / "config.yaml").read_text()).get("stream")
    rows = [row for row in read_metrics(directory) if "stream/acc" in row]
    if not stream or not rows:
        raise ValueError(f"{directory} is not a run of a task stream whose first task is done")
    seen = [[row.get(f"task{s}/accuracy", np.nan) for s in range(stream["tasks"])] for row in rows]
    return np.array(seen, float)
