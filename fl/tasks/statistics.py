"""Statistics of a metric: how uneven it is over clients, and what a stream of tasks forgets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def gini(values: np.ndarray) -> float:
    """Return the Gini coefficient of x (N,) >= 0, sum_ij |x_i - x_j| / (2 N^2 mean).

    Computed from the ranks: sum_i (2 i - N - 1) x_(i) / (N sum x).

    >>> gini(np.array([0.0, 0.0, 0.0, 1.0]))
    0.75
    """
    n, total = len(values), values.sum()
    return float((2 * np.arange(1, n + 1) - n - 1) @ np.sort(values) / (n * total)) if total > 0 else 0.0


def forgetting(matrix: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return accuracy, forgetting and backward transfer of a stream, from a[t][s], the accuracy on task s after task t.

    With s <= t and T the last t:

    acc = mean_s a[T][s]    fgt = mean_{s<T} (max_{s<=t<T} a[t][s] - a[T][s])    bwt = mean_{s<T} (a[T][s] - a[s][s])

    >>> forgetting([[0.9], [0.5, 0.75]])
    {'acc': 0.625, 'fgt': 0.4, 'bwt': -0.4}

    Chaudhry, Dokania, Ajanthan, Torr 2018, arXiv:1801.10112 (forgetting); Lopez-Paz, Ranzato 2017, arXiv:1706.08840.
    """
    last = matrix[-1]
    row = {"acc": float(np.mean(last))}
    if len(matrix) > 1:
        before = range(len(last) - 1)
        row["fgt"] = float(np.mean([max(a[s] for a in matrix[s:-1]) - last[s] for s in before]))
        row["bwt"] = float(np.mean([last[s] - matrix[s][s] for s in before]))
    return row
