"""Coordinate-wise median, robust to Byzantine clients.

    model <- model + med(updates):  in each coordinate the middle of n values, of an even number the mean of the middle two

Yin, Chen, Ramchandran, Bartlett 2018, arXiv:1803.01498.  Unweighted as in the paper: a weight is a client's own claim.
Differs from the paper: clients train locally instead of sending one gradient.  All updates of a cohort are needed at once.
Neutral: none; of one or two clients it is their uniform mean.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fl.method.reduction import Collect
from fl.method.strategy import Strategy
from fl.registry import register


def median(rows: Tensor, weights: Tensor) -> Tensor:
    """(n, P), (n,) -> (P,): the median of each column; the weights are not used."""
    n = len(rows)
    return rows.sort(0).values[(n - 1) // 2 : n // 2 + 1].mean(0)


@register("strategy", "median")
@dataclass(frozen=True, kw_only=True)
class Median(Strategy):
    def reduction(self, state, ctx):
        return Collect(median)

    def step(self, state, middle, ctx):
        return state + middle, {}
