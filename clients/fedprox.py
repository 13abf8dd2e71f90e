"""FedProx: local training that stays near the received model.    min_w  L_k(w) + mu/2 ||w - received||^2

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith 2020, arXiv:1812.06127.  The term enters as its gradient, mu (w - received).
Differs from the paper: a budget of epochs or steps in place of gamma-inexact solutions.
Equals FedAvg: mu=0, equal bits in the loop.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from fl import LocalTraining, Penalty, StepContext, checks, register


@register("client", "fedprox")
@dataclass(frozen=True, kw_only=True)
class FedProx(LocalTraining):
    """Local training with a proximal term.

    Args:
        mu: weight of the squared distance to the received model, at least 0. 0 is FedAvg.
    """

    mu: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.not_negative(mu=self.mu, hint="0 is plain local training")
        if self.mu == 0:
            logging.getLogger(__name__).warning("mu=0: this is fedavg")

    def penalty(self, at: StepContext) -> Penalty | None:
        return Penalty(self.mu, at.start) if self.mu else None
