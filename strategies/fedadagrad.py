"""Adagrad on the server (FedAdagrad).

    m <- beta1 m + (1 - beta1) d;   v <- v + d^2;   model <- model + lr * m / (sqrt(v) + tau)

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan 2021, arXiv:2003.00295, Algorithm 2.  beta1=0 as in its
experiments. d is the mean update, weighted by `num_examples`; m starts at 0, v at tau^2; there is no bias correction.
Differs from the paper: see `strategies/fedopt.py`.
Equals FedAvg: no setting; v grows with every round.
"""

from __future__ import annotations

from dataclasses import dataclass

from fl import register, server_optimiser

from .fedopt import FedOpt


@register("strategy", "fedadagrad")
@dataclass(frozen=True, kw_only=True)
class FedAdagrad(FedOpt):
    """FedAvg with Adagrad on the server.

    Args:
        lr: server learning rate, at least 0.
        beta1: weight of the last first moment m, in [0, 1).
        tau: positive; bounds the step where updates are small.
    """

    lr: float = 0.1
    beta1: float = 0.0
    tau: float = 1e-3

    @property
    def rule(self) -> server_optimiser.Adagrad:
        return server_optimiser.Adagrad(lr=self.lr, beta1=self.beta1, tau=self.tau)
