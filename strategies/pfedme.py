"""pFedMe: the shared model follows the clients' Moreau envelopes.    w <- (1 - beta) w + beta mean_{i in S} w_i

    F_i(w) = min_theta f_i(theta) + lam/2 |theta - w|^2        (`clients/pfedme.py`)

Dinh, Tran, Nguyen 2020, arXiv:2006.08848, Algorithm 1. The mean is uniform as in the paper. eval/* is of w, clients/* of the thetas. Traffic is
FedAvg's.  Neutral: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fl.method.reduction import WeightedMean
from fl.method.strategy import Strategy
from fl.registry import register


@register("strategy", "pfedme")
@dataclass(frozen=True, kw_only=True)
class PFedMe(Strategy):
    beta: float = 1.0
    weights: Literal["uniform", "examples"] = "uniform"

    client: ClassVar[str] = "pfedme"

    def __post_init__(self):
        if self.beta <= 0:
            raise ValueError(f"beta: {self.beta} is not positive; at 0 the model would never move, 1 is the mean")

    def reduction(self, state, ctx):
        return WeightedMean(self.weights)

    def step(self, state, mean, ctx):
        return state + self.beta * mean, {}
