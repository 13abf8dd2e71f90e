"""pFedMe: the shared model follows the clients' Moreau envelopes.    w <- (1 - beta) w + beta mean_{i in S} w_i

    F_i(w) = min_theta f_i(theta) + lam/2 |theta - w|^2        (`clients/pfedme.py`)

Dinh, Tran, Nguyen 2020, arXiv:2006.08848, Algorithm 1.  The mean is uniform as in the paper.  eval/* measures w,
clients/* the thetas.  The traffic is FedAvg's.
Equals FedAvg: no setting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fl import Metrics, Params, ServerContext, Strategy, WeightedMean, checks, register


@register("strategy", "pfedme")
@dataclass(frozen=True, kw_only=True)
class PFedMe(Strategy):
    """Move the model towards the mean of the clients' models.

    Args:
        beta: step towards the mean, positive. 1 is the mean, as FedAvg's server step.
        weights: weights of the mean: `uniform` (the paper) or `examples` (number of training samples).
    """

    beta: float = 1.0
    weights: Literal["uniform", "examples"] = "uniform"

    client: ClassVar[str] = "pfedme"

    def __post_init__(self) -> None:
        checks.positive(beta=self.beta, hint="at 0 the model would never move, 1 is the mean")

    def reduction(self, state: Params, ctx: ServerContext) -> WeightedMean:
        return WeightedMean(self.weights)

    def step(self, state: Params, reduced: Params, ctx: ServerContext) -> tuple[Params, Metrics]:
        return state + self.beta * reduced, {}
