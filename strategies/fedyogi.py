"""Yogi on the server (FedYogi). As FedAdam, but v moves by at most (1 - beta2) d^2 in a round.

    m <- beta1 m + (1 - beta1) d;   v <- v - (1 - beta2) d^2 sign(v - d^2);   model <- model + lr * m / (sqrt(v) + tau)

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan 2021, arXiv:2003.00295, Algorithm 2.
d is the mean update, weighted by `num_examples`; m starts at 0, v at tau^2; there is no bias correction.
Differs from the paper: see `strategies/fedopt.py`.
Equals FedAvg: beta1=0, beta2=1, tau=1/2, lr=1 keep sqrt(v) + tau = 1 and m = d; equal bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl import FedAvgEquivalent, register, server_optimiser

from .fedopt import FedOpt


@register("strategy", "fedyogi")
@dataclass(frozen=True, kw_only=True)
class FedYogi(FedOpt):
    """FedAvg with Yogi on the server.

    Args:
        lr: server learning rate, at least 0.
        beta1: weight of the last first moment m, in [0, 1).
        beta2: v moves by at most (1 - beta2) d^2 in a round; in [0, 1].
        tau: positive; bounds the step where updates are small.
    """

    lr: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(
        strategy={"beta1": 0.0, "beta2": 1.0, "tau": 0.5, "lr": 1.0}
    )

    @property
    def rule(self) -> server_optimiser.Yogi:
        return server_optimiser.Yogi(lr=self.lr, beta1=self.beta1, beta2=self.beta2, tau=self.tau)
