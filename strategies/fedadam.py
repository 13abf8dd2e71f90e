"""Adam on the server (FedAdam).

    m <- beta1 m + (1 - beta1) d;   v <- beta2 v + (1 - beta2) d^2;   model <- model + lr * m / (sqrt(v) + tau)

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan 2021, arXiv:2003.00295, Algorithm 2.  The common part, and
where it differs from the paper, is in `strategies/adaptive.py`.
Neutral: beta1=0, beta2=1, tau=1/2, lr=1 keep sqrt(v) + tau = 1 and m = d, so it is FedAvg, to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl.method.strategy import FedAvgEquivalent
from fl.registry import register
from strategies.adaptive import Adaptive


@register("strategy", "fedadam")
@dataclass(frozen=True, kw_only=True)
class FedAdam(Adaptive):
    beta2: float = 0.99

    fedavg_equivalent: ClassVar[FedAvgEquivalent] = FedAvgEquivalent(
        strategy={"beta1": 0.0, "beta2": 1.0, "tau": 0.5, "lr": 1.0}
    )

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.beta2 <= 1:
            raise ValueError(f"beta2: {self.beta2} is not in [0, 1]")

    def second(self, v, square):
        return self.beta2 * v + (1 - self.beta2) * square
