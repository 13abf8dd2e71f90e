"""Importance of columns and of parties in a model, in vertical federated learning.

    I_p = mean over rows of sum_{j in p} |phi_j|          alpha^ = (P - 1 - P^2 v) / (P^3 v),  v = Var(I / sum I)

phi (rows, columns) are Shapley values. alpha^ is the concentration of the symmetric Dirichlet distribution with the
variance v. Wu, Hou, He 2023, arXiv:2307.02040 (VertiBench).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from fl.checks import at_least


def linear_shapley(x: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Return the Shapley values (N, D, K) of the linear model x @ coefficients: w_j (x_j - mean_j).

    Args:
        x: (N, D); also the background, whose mean is the baseline.
        coefficients: (D, K).

    >>> linear_shapley(np.array([[0.0], [2.0]]), np.array([[3.0]])).ravel().tolist()
    [-3.0, 3.0]
    """
    return (x - x.mean(0))[:, :, None] * coefficients[None]


def shapley(
    predict: Callable[[np.ndarray], np.ndarray],
    x: np.ndarray,
    background: np.ndarray,
    generator: np.random.Generator,
    permutations: int = 10,
) -> np.ndarray:
    """Estimate the Shapley values (N, D, K) of a model from random orders of the columns.

    Columns not yet in the order have the values of the background's rows; predictions are averaged over them. Each
    order is also walked backwards, so that the values of pairs of columns are exact.

    Args:
        predict: (B, D) -> (B, K) or (B,).
        x: rows to explain, (N, D).
        background: rows that stand for missing columns, (M, D). A prediction is made for N x M rows at once.
        generator: source of the orders.
        permutations: number of random orders, at least 1.
    """
    at_least(1, permutations=permutations)
    n, width = x.shape
    known = np.tile(x[:, None], (1, len(background), 1))

    def mean_prediction(present: np.ndarray) -> np.ndarray:
        mixed = np.where(present, known, background[None]).reshape(-1, width)
        out = np.asarray(predict(mixed), float)
        return out.reshape(n, len(background), -1).mean(1)

    nothing = mean_prediction(np.zeros(width, bool))
    values = np.zeros((n, width, nothing.shape[-1]))
    for _ in range(permutations):
        order = generator.permutation(width)
        for walk in (order, order[::-1]):
            present, before = np.zeros(width, bool), nothing
            for column in walk:
                present[column] = True
                after = mean_prediction(present)
                values[:, column] += after - before
                before = after
    return values / (2 * permutations)


def importance_of(values: np.ndarray, columns: Sequence[np.ndarray]) -> np.ndarray:
    """Return the importance (P,) of parties, I_p = mean over rows and outputs of sum_{j in p} |phi_j|.

    Args:
        values: Shapley values, (N, D) or (N, D, K).
        columns: columns of each party.

    >>> importance_of(np.array([[1.0, -2.0, 3.0], [1.0, 2.0, -5.0]]), [np.array([0, 1]), np.array([2])]).tolist()
    [3.0, 4.0]
    """
    size = np.abs(values).reshape(*values.shape[:2], -1).mean((0, 2))
    return np.array([size[own].sum() for own in columns])


def alpha_of(importance: np.ndarray) -> float:
    """Estimate the concentration alpha from the importance of P parties, (P,), or of several splits, (S, P).

    Equal parties give infinity. With several splits v is the mean of their variances.

    >>> alpha_of(np.array([3.0, 1.0]))  # shares 3/4 and 1/4: v = 1/16
    1.5
    """
    shares = importance / importance.sum(-1, keepdims=True)
    parties, variance = shares.shape[-1], float(shares.var(-1).mean())
    return math.inf if variance == 0 else (parties - 1 - parties**2 * variance) / (parties**3 * variance)


def linear_coefficients(x: np.ndarray, y: np.ndarray, ridge: float = 1e-3) -> np.ndarray:
    """Return the coefficients (D, K) of a linear model fitted by least squares with a small penalty.

    Args:
        x: (N, D).
        y: (N,) integers, which are fitted as vectors of 0 and 1, one for each class; or numbers (N,) or (N, K).
        ridge: weight of the squared coefficients, per row.
    """
    targets = (y[:, None] == np.unique(y)).astype(float) if y.dtype.kind in "iub" else y.reshape(len(y), -1)
    x, targets = x - x.mean(0), targets - targets.mean(0)
    return np.linalg.solve(x.T @ x + ridge * len(x) * np.eye(x.shape[1]), x.T @ targets)
