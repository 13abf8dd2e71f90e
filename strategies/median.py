"""Coordinate-wise median, robust to Byzantine clients.

    model <- model + med(updates):  per coordinate the middle of n values; if n is even, the mean of the middle two

Yin, Chen, Ramchandran, Bartlett 2018, arXiv:1803.01498.  Unweighted as in the paper: a weight is a client's own claim.
All updates of a cohort are needed at once.
Differs from the paper: clients train locally instead of sending one gradient.
Equals FedAvg: no setting.  For one or two clients it is their uniform mean.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fl import Collect, Metrics, Params, ServerContext, Strategy, means_of_ranks, register


def median(rows: Tensor, weights: Tensor) -> Tensor:
    """Return the median of each column: (n, P), (n,) -> (P,). The weights are not used."""
    n = len(rows)
    return means_of_ranks(rows, (n - 1) // 2, n // 2 + 1)


@register("strategy", "median")
@dataclass(frozen=True, kw_only=True)
class Median(Strategy):
    """Move the model by the coordinate-wise median of the updates."""

    def reduction(self, state: Params, ctx: ServerContext) -> Collect:
        return Collect(median)

    def step(self, state: Params, reduced: Params, ctx: ServerContext) -> tuple[Params, Metrics]:
        return state + reduced, {}
