"""Label skew with given sizes: each client draws its rows from its own class mixture.

    q_c ~ Dir(alpha p_1 K, ..., alpha p_K K)       client c has n_c rows, about n_c q_ck of class k;   p_k = n_k / R

Hsu, Qi, Brown 2019, arXiv:1909.06335, section 3: mixtures of clients instead of shares of classes, so sizes can be
chosen. With equally large classes each parameter is alpha. flwr-datasets' InnerDirichletPartitioner and FedLab's
`client_inner_dirichlet` are similar. Differs: there, clients choose row by row, one after another, and the last one
gets the rest. Here, all clients request Multinomial(n_c, q_c) rows at once. If a class has too few rows, its clients
are served in random order, and the others request again among the remaining classes, at most K times. Small alpha: one
class per client while there are enough rows; alpha -> inf: equal mixtures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl.checks import within
from fl.data.dataset import Dataset
from fl.data.grouping import class_codes, deal_classes, hash_order
from fl.data.partition import Partition
from fl.data.partitioner import Partitioner
from fl.registry import register
from fl.tensors import random


def inner_dirichlet(
    labels: np.ndarray, sizes: Sequence[int] | np.ndarray, alpha: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return (indices, offsets). Client c has exactly sizes[c] rows; remaining rows are not used."""
    sizes = np.asarray(sizes, np.int64)
    if not len(sizes) or sizes.ndim != 1 or sizes.min() < 0:
        raise ValueError(f"sizes: {sizes.tolist()[:5]} are not numbers of rows, one per client")
    within("(0, inf)", alpha=alpha, hint="'iid' gives equal shares")
    if sizes.sum() > len(labels):
        raise ValueError(f"sizes: their sum {sizes.sum()} is more than the {len(labels)} rows; use smaller sizes")
    classes, codes = class_codes(labels)
    supply = np.bincount(codes, minlength=len(classes))
    generator = random.numpy_generator(seed, "inner_dirichlet")
    logs = log_mixtures(generator, len(sizes), alpha * len(classes) * supply / supply.sum())
    return deal_classes(codes, served(generator, sizes, supply, logs, seed), seed, "inner_dirichlet")


def log_mixtures(generator: np.random.Generator, clients: int, parameters: np.ndarray) -> np.ndarray:
    """Draw (N, K) logarithms from Dir(parameters), up to a constant per row. Gamma(a) = Gamma(a + 1) U^(1/a)."""
    shape = (clients, len(parameters))
    return np.log(generator.standard_gamma(parameters + 1, shape)) + np.log(1 - generator.random(shape)) / parameters


def served(
    generator: np.random.Generator, sizes: np.ndarray, supply: np.ndarray, logs: np.ndarray, seed: int = 0
) -> np.ndarray:
    """Return the number of rows (N, K), int64, of each client and class.

    Row c sums to sizes[c], column k to at most supply[k].

    Args:
        generator: Source of the multinomial draws.
        sizes: (N,) rows of each client.
        supply: (K,) rows of each class.
        logs: (N, K) logarithms of the class mixtures.
        seed: Seed of the order in which clients are served.
    """
    counts, left, wanting = np.zeros(logs.shape, np.int64), supply.copy(), np.flatnonzero(sizes)
    for turn in range(len(supply)):
        if not len(wanting):
            break
        open_ = np.flatnonzero(left)  # each turn except the last empties a class
        mixtures = np.exp(logs[np.ix_(wanting, open_)] - logs[np.ix_(wanting, open_)].max(1, keepdims=True))
        mixtures /= mixtures.sum(1, keepdims=True)
        asked = generator.multinomial(sizes[wanting] - counts[wanting].sum(1), mixtures)
        for j in np.flatnonzero(asked.sum(0) > left[open_]):
            order = hash_order(
                random.hash64(seed, "inner_dirichlet/queue", turn, int(open_[j]), np.arange(len(wanting)))
            )
            before = np.cumsum(asked[order, j]) - asked[order, j]
            asked[order, j] = np.clip(left[open_[j]] - before, 0, asked[order, j])
        counts[np.ix_(wanting, open_)] += asked
        left[open_] -= asked.sum(0)
        wanting = wanting[counts[wanting].sum(1) < sizes[wanting]]
    return counts


@register("partition", "inner_dirichlet")
@dataclass(frozen=True, kw_only=True)
class InnerDirichlet(Partitioner):
    """Clients with given sizes, each with its own class mixture drawn from a Dirichlet distribution.

    Args:
        sizes: Number of rows of each client.
        alpha: Concentration of the mixtures, positive. Small: few classes per client. Large: nearly equal mixtures.
        seed: Seed of the random choices.
    """

    sizes: tuple[int, ...]
    alpha: float
    seed: int = 0

    leaves_rows: ClassVar[bool] = True

    def split(self, dataset: Dataset) -> Partition:
        return Partition(*inner_dirichlet(dataset.labels, self.sizes, self.alpha, self.seed))
