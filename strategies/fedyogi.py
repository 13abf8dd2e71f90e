"""Yogi on the server (FedYogi): as FedAdam, but v moves by at most (1 - beta2) d^2 a round, whichever way.

    m <- beta1 m + (1 - beta1) d;   v <- v - (1 - beta2) d^2 sign(v - d^2);   model <- model + lr * m / (sqrt(v) + tau)

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan 2021, arXiv:2003.00295, Algorithm 2.  The common part, and
where it differs from the paper, is in `strategies/adaptive.py`.  v stays >= 0 for beta2 >= 0.
Neutral: beta1=0, beta2=1, tau=1/2, lr=1 keep sqrt(v) + tau = 1 and m = d, so it is FedAvg, to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass

from fl.registry import register
from fl.tensors.params import sign
from strategies.fedadam import FedAdam


@register("strategy", "fedyogi")
@dataclass(frozen=True, kw_only=True)
class FedYogi(FedAdam):
    def second(self, v, square):
        return v - (1 - self.beta2) * (square * sign(v - square))
