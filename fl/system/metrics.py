"""Statistics of participation and staleness."""

from __future__ import annotations

import numpy as np


def participations(clients: np.ndarray, population: int) -> np.ndarray:
    """Return (population,): how often each id occurs in `clients` (n,), the concatenated cohorts of all rounds.

    >>> participations(np.array([0, 2, 2]), 4).tolist()
    [1, 0, 2, 0]
    """
    return np.bincount(np.asarray(clients, np.int64), minlength=population)


def jain(values: np.ndarray) -> float:
    """Jain's fairness index (sum x)^2 / (n sum x^2) of x (n,) >= 0 (Jain, Chiu, Hawe 1984).

    It is 1 if all values are equal and 1/n if only one is positive.

    >>> jain(np.array([1.0, 1.0])), jain(np.array([4.0, 0.0]))
    (1.0, 0.5)
    """
    values = np.asarray(values, float)
    squares = float((values**2).sum())
    return float(values.sum()) ** 2 / (len(values) * squares) if squares else 1.0


def histogram(values: np.ndarray) -> np.ndarray:
    """Return (max + 1,): how many of the values (n,) are 0, 1, 2, ...

    >>> histogram(np.array([0, 2, 2])).tolist()
    [1, 0, 2]
    """
    return np.bincount(np.asarray(values, np.int64))
