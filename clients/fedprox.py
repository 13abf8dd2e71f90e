"""FedProx: local training held near what was received.    min_w  L_k(w) + mu/2 ||w - received||^2

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith 2020, arXiv:1812.06127.  The term enters as its gradient, mu (w - received).
Differs from the paper: a budget of epochs or steps in place of gamma-inexact solutions.  Neutral: mu=0, to the bit in a loop.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from fl.method.local_training import LocalTraining
from fl.registry import register


@register("client", "fedprox")
@dataclass(frozen=True, kw_only=True)
class FedProx(LocalTraining):
    mu: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        if self.mu < 0:
            raise ValueError(f"mu: {self.mu} is negative; 0 is plain local training")
        if self.mu == 0:
            logging.getLogger(__name__).warning("mu=0: this is fedavg")

    def gradient(self, grad, params, at):
        return grad + self.mu * (params - at.start) if self.mu else grad
