"""Server momentum (FedAvgM).    velocity <- beta * velocity + mean(update);   model <- model + lr * velocity

Hsu, Qi, Brown 2019, arXiv:1909.06335.  The mean is weighted by `num_examples`; velocity starts at zero, so round 0
moves.
nesterov:  model <- model + lr * (mean(update) + beta * velocity)
Differs from the paper: `lr` is an addition.
Equals FedAvg: beta=0, lr=1, equal bits.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

from fl import FedAvgEquivalent, Momentum, register

from .fedopt import FedOpt


@register("strategy", "fedavgm")
@dataclass(frozen=True, kw_only=True)
class FedAvgM(FedOpt):
    """FedAvg with momentum on the server.

    Args:
        lr: server learning rate, at least 0. 1 is FedAvg.
        beta: weight of the last velocity, in [0, 1). 0 is FedAvg.
        nesterov: look ahead along the new velocity (Nesterov's accelerated gradient).
    """

    lr: float = 1.0
    beta: float = 0.9
    nesterov: bool = False

    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(strategy={"beta": 0.0, "lr": 1.0})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta == 0:
            logging.getLogger(__name__).warning("beta=0: this is fedavg with lr=%g", self.lr)

    @property
    def rule(self) -> Momentum:
        return Momentum(lr=self.lr, beta=self.beta, nesterov=self.nesterov)
