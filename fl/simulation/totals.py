"""What adds up over the exchanges of a round, and weighted means of metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fl.execution.dispatch import DispatchResult

Row = dict[str, Any]


class RoundTotals:
    """Sums and pooled metrics over the exchanges and evaluations of one round."""

    def __init__(self) -> None:
        self.pooled: dict[str, list[tuple[float, float]]] = {}  # (value, samples) of each exchange
        self.simulated: dict[str, float] = {}
        self.after_reduction: dict[str, float] = {}  # metrics of these parts
        self.errors: list[str] = []
        self.dropped = self.retried = self.unweighted = 0
        self.busy_seconds = self.server_seconds = 0.0

    def add_metrics(self, metrics: Mapping[str, float], samples: float) -> None:
        """Add the pooled metrics of one exchange; `samples` is their weight."""
        for name, value in metrics.items():
            self.pooled.setdefault(name, []).append((value, samples))

    def add_work(self, result: DispatchResult) -> None:
        """Add the seconds, retries and errors of the workers."""
        self.busy_seconds += result.busy_seconds
        self.retried += result.retried
        self.errors += result.errors

    def add_simulated(self, figures: Mapping[str, float]) -> None:
        """Add virtual seconds and counts of clients: outcomes, attackers."""
        for name, value in figures.items():
            self.simulated[name] = self.simulated.get(name, 0) + value

    def summary(self) -> Row:
        """Return the round's row of metrics. A metric of one exchange keeps its bits."""
        row: Row = {}
        for name, pieces in self.pooled.items():
            row[f"train/{name}"] = pieces[0][0] if len(pieces) == 1 else weighted_mean(*np.array(pieces).T)
        row |= {"dropped": self.dropped, "busy_seconds": self.busy_seconds}
        if self.unweighted:  # training exchanges whose updates have no weight
            row["unweighted"] = self.unweighted
        if self.server_seconds:
            row["server_seconds"] = self.server_seconds
        if self.errors:
            row["errors"] = self.errors
        return row | self.simulated | self.after_reduction


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
    """Return sum w x / sum w, NaN if all weights are 0. A value with weight 0 does not count, even if it is NaN.

    >>> weighted_mean(np.array([1.0, 4.0, np.nan]), np.array([2, 1, 0]))
    2.0
    """
    total = weights.sum()
    return float((np.where(weights > 0, values, 0.0) * weights).sum() / total) if total else float("nan")
