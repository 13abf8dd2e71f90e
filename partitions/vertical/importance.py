"""Parties of unequal importance: the share of columns of each party is drawn from a Dirichlet distribution.

    q ~ Dir(w_0, ..., w_P-1)      each column belongs to party p with probability q_p

Wu, Hou, He 2023, arXiv:2307.02040 (VertiBench). A small alpha = w_0 = ... = w_P-1 gives one party most columns, a
large one gives all parties about equal numbers. The shares come from stick breaking, which also works for tiny weights:

    q_0 = b_0,  q_p = b_p (1 - b_0) ... (1 - b_p-1),      b_p ~ Beta(w_p, w_p+1 + ... + w_P-1)

fl/data/column_importance.py measures the importance of the parties, and estimates alpha from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fl.checks import at_least, within
from fl.data.dataset import Dataset
from fl.data.partitioner import ColumnPartitioner
from fl.registry import register
from fl.tensors import random


def stick_breaking(weights: Sequence[float], generator: np.random.Generator) -> np.ndarray:
    """Draw shares (P,) ~ Dir(weights); they add up to 1."""
    tails = np.cumsum(np.asarray(weights, float)[::-1])[::-1]
    shares, rest = np.zeros(len(weights)), 1.0
    for party in range(len(weights) - 1):
        broken = generator.beta(weights[party], tails[party + 1])
        shares[party] = rest * broken
        rest *= 1.0 - broken
    shares[-1] = rest
    return shares / shares.sum()


def importance_owners(
    columns: int, weights: Sequence[float], generator: np.random.Generator, empty: bool = False
) -> np.ndarray:
    """Draw the party of each column, int64 (columns,).

    Args:
        columns: number of columns.
        weights: weight of each party, positive. Party p has on average the share w_p / sum w of the columns.
        generator: source of the draws.
        empty: Whether a party may have no column. If not, each party first gets one random column.

    >>> importance_owners(3, [1.0, 1.0, 1.0], np.random.default_rng(0)).sum()  # one column each
    np.int64(3)
    """
    parties = len(weights)
    if not all(0 < weight < math.inf for weight in weights):
        raise ValueError(f"weights: {list(weights)} are not positive numbers")
    if parties > columns and not empty:
        raise ValueError(f"parties: {parties} is more than the {columns} columns of the data; each party needs one")
    owners = generator.choice(parties, columns, p=stick_breaking(weights, generator))
    if not empty:
        owners[generator.permutation(columns)[:parties]] = np.arange(parties)
    return owners


@register("partition", "vertical_importance")
@dataclass(frozen=True, kw_only=True)
class VerticalImportance(ColumnPartitioner):
    """Parties of unequal importance: their shares of the columns are drawn from a Dirichlet distribution.

    Each party has at least one column. Wu, Hou, He 2023, arXiv:2307.02040.

    Args:
        parties: Number of parties with the active one, at least 2.
        alpha: Concentration, positive. Small: one party has most columns. Large: all have about equal numbers.
        weights: Weight of each party, positive, in place of `alpha`: party p has on average the share w_p / sum w of
            the columns beyond its first.
        seed: Seed of the draw, and of the choice of validation and test rows.
    """

    parties: int
    alpha: float | None = None
    weights: tuple[float, ...] | None = None
    seed: int = 0

    example_config: ClassVar[dict[str, Any]] = {"partition.parties": 3, "partition.alpha": 1.0}

    def __post_init__(self) -> None:
        at_least(2, parties=self.parties, hint="the active party and at least one other party")
        if (self.alpha is None) == (self.weights is None):
            raise ValueError("alpha: give either `alpha`, one number, or `weights`, one number per party")
        within("(0, inf)", alpha=self.alpha, hint="a large value gives about equal shares")
        if self.weights is not None and len(self.weights) != self.parties:
            raise ValueError(f"weights: {len(self.weights)} numbers for {self.parties} parties; give one each")

    def party_columns(self, dataset: Dataset) -> Sequence[np.ndarray]:
        width = dataset.train["x"].shape[-1]
        weights = self.weights or (self.alpha or 0.0,) * self.parties
        owners = importance_owners(width, weights, random.numpy_generator(self.seed, "vertical_importance"))
        return [np.flatnonzero(owners == party) for party in range(self.parties)]
