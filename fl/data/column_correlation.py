"""Correlation between the columns of parties, in vertical federated learning.

    Pcor(i, j) = s / sqrt(d),   d = min(d_i, d_j), and 0 if d = 1;   s: standard deviation of the d singular values of
                                the Spearman correlations (d_i, d_j) between the columns of parties i and j
    Icor = mean_i 1/(P - 1) sum_{j != i} (Pcor(i, j) - Pcor(i, i))

Wu, Hou, He 2023, arXiv:2307.02040 (VertiBench).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata


def spearman(x: np.ndarray) -> np.ndarray:
    """Return the rank correlations (D, D) of the columns of x (N, D). Ties have their mean rank.

    A constant column has correlation 0 with all columns.

    >>> spearman(np.array([[1.0, 9.0, 5.0], [2.0, 4.0, 5.0], [3.0, 1.0, 5.0]])).round(6).tolist()
    [[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    ranks = rankdata(x, axis=0)
    ranks -= ranks.mean(0)
    lengths = np.sqrt((ranks**2).sum(0))
    ranks /= np.where(lengths > 0, lengths, 1)
    return np.clip(ranks.T @ ranks, -1, 1)


def pcor(block: np.ndarray) -> float:
    """Return the correlation between two parties from the correlations of their columns, (d_i, d_j).

    >>> pcor(np.eye(3)), round(pcor(np.ones((3, 5))), 6)  # the one singular value that is not 0 is sqrt(15)
    (0.0, 1.290994)
    """
    least = min(block.shape)
    if least == 1:
        return 0.0
    return float(np.linalg.svd(block, compute_uv=False).std(ddof=1) / np.sqrt(least))


def icor(correlation: np.ndarray, columns: Sequence[np.ndarray]) -> float:
    """Return the mean correlation between parties, beyond that inside parties.

    Args:
        correlation: correlations of all columns, (D, D).
        columns: columns of each party, P >= 2.

    >>> block = np.kron(np.eye(2), np.ones((2, 2)))  # columns 0 and 1 are equal, and 2 and 3
    >>> [round(icor(block, np.array(split)), 6) for split in ([[0, 1], [2, 3]], [[0, 2], [1, 3]])]
    [-1.0, 0.0]
    """
    return mean_beyond_inside(correlations_of_parties(correlation, columns))


def correlations_of_parties(correlation: np.ndarray, columns: Sequence[np.ndarray]) -> np.ndarray:
    """Return Pcor of all pairs of parties, (P, P)."""
    found = np.zeros((len(columns), len(columns)))
    for i, own in enumerate(columns):
        for j in range(i, len(columns)):
            found[i, j] = found[j, i] = pcor(correlation[np.ix_(own, columns[j])])
    return found


def mean_beyond_inside(pairs: np.ndarray) -> float:
    """Return Icor from Pcor of all pairs of parties, (P, P)."""
    parties, inside = len(pairs), np.trace(pairs)
    return float((pairs.sum() - inside) / (parties * (parties - 1)) - inside / parties)
