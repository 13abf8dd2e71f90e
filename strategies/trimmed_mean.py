"""Coordinate-wise trimmed mean, robust to Byzantine clients.

    model <- model + trim_beta(updates):  per coordinate drop the floor(beta n) largest and smallest, average the rest

Yin, Chen, Ramchandran, Bartlett 2018, arXiv:1803.01498.  Unweighted as in the paper: a weight is a client's own claim.
All updates of a cohort are needed at once.
Differs from the paper: clients train locally instead of sending one gradient.
Equals FedAvg: beta=0 is FedAvg with weights=uniform, to 1e-6.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from torch import Tensor

from fl import Collect, FedAvgEquivalent, Metrics, Params, ServerContext, Strategy, checks, means_of_ranks, register


@dataclass(frozen=True)
class Trim:
    """The trimmed mean of each column: (n, P), (n,) -> (P,). The weights are not used."""

    beta: float

    def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
        n = len(rows)
        k = int(Fraction(str(self.beta)) * n)  # the decimal as written: 0.29 * 100 is 28.999... in floating point
        return means_of_ranks(rows, k, n - k)


@register("strategy", "trimmed_mean")
@dataclass(frozen=True, kw_only=True)
class TrimmedMean(Strategy):
    """Move the model by the coordinate-wise trimmed mean of the updates.

    Args:
        beta: share of the values that is dropped at each end, in [0, 0.5). 0 is FedAvg with uniform weights.
    """

    beta: float = 0.1

    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(
        strategy={"beta": 0.0}, fedavg={"weights": "uniform"}, bits=False
    )

    def __post_init__(self) -> None:
        checks.within("[0, 0.5)", beta=self.beta, hint="from 0.5 on nothing is left to average")
        if self.beta == 0:
            logging.getLogger(__name__).warning("beta=0: this is fedavg with weights=uniform")

    def reduction(self, state: Params, ctx: ServerContext) -> Collect:
        return Collect(Trim(self.beta))

    def step(self, state: Params, reduced: Params, ctx: ServerContext) -> tuple[Params, Metrics]:
        return state + reduced, {}
