"""Adam on the server (FedAdam).

    m <- beta1 m + (1 - beta1) d;   v <- beta2 v + (1 - beta2) d^2;   model <- model + lr * m / (sqrt(v) + tau)

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan 2021, arXiv:2003.00295, Algorithm 2.  d is the mean update
(local minus broadcast, so it is added), m starts at 0 and v at tau^2, and there is no bias correction, all as in the paper.
Differs from the paper: d is weighted by `num_examples` (Algorithm 2 averages uniformly, the experiments weigh).
Neutral: beta1=0, beta2=1, tau=1/2, lr=1 keep sqrt(v) + tau = 1 and m = d, so it is FedAvg, to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl.params import Params, sqrt, zeros_like
from fl.registry import register
from fl.strategy import Neutral, Strategy


@dataclass(frozen=True)
class State:
    model: Params
    m: Params
    v: Params


@register("strategy", "fedadam")
@dataclass(frozen=True, kw_only=True)
class FedAdam(Strategy):
    lr: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    neutral: ClassVar[Neutral] = Neutral(strategy={"beta1": 0.0, "beta2": 1.0, "tau": 0.5, "lr": 1.0})

    def __post_init__(self):
        if not 0 <= self.beta1 < 1:
            raise ValueError(f"beta1: {self.beta1} is not in [0, 1); at 1 no update would ever enter")
        if not 0 <= self.beta2 <= 1:
            raise ValueError(f"beta2: {self.beta2} is not in [0, 1]")
        if self.tau <= 0:
            raise ValueError(f"tau: {self.tau} is not positive; it keeps the step finite where updates are zero")

    def init(self, model, ctx):
        return State(model, zeros_like(model), zeros_like(model) + self.tau**2)

    def step(self, state, mean, ctx):
        m = self.beta1 * state.m + (1 - self.beta1) * mean
        v = self.beta2 * state.v + (1 - self.beta2) * (mean * mean)
        return State(state.model + self.lr * (m / (sqrt(v) + self.tau)), m, v), {}
