"""FedBuff: updates gather in a buffer; when it is full the server steps along their mean, late ones damped.

    velocity <- beta velocity + (1/K) sum_i s(tau_i) delta_i;    model <- model + lr velocity          s(tau) = (1 + tau)^-a

Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba 2022, arXiv:2106.06639, Algorithm 1; a=0.5 is its 1/sqrt(1 + tau), beta
the momentum its server has in the experiments.  K is the server's: `server: {name: buffered, buffer: K, concurrency: ...}`;
with a synchronous server it is the cohort, and nobody is late.  The sum is divided by K, not by the sum of the s: a
buffer of late updates makes a shorter step.  `weights: examples` takes the mean by training samples instead.
Differs from the paper: beta=0 by default.
Neutral: beta=0, lr=1 with a synchronous server is FedAvg of uniform weights, equal bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from fl.method.reduction import Meta, WeightedMean
from fl.method.strategy import FedAvgEquivalent, Strategy
from fl.registry import register
from fl.tensors.params import Params, zeros_like
from fl.tensors.trees import Tree
from strategies.staleness import Kind, check, damping


@dataclass(frozen=True)
class State:
    model: Params
    velocity: Params | None  # `None` without momentum


@dataclass(frozen=True)
class DampedMean(WeightedMean):
    """sum_i w_i s(tau_i) value_i / sum_i w_i"""

    staleness: Kind = "polynomial"
    a: float = 0.5
    b: int = 4

    def lift(self, value: Params, meta: Meta) -> tuple[Tree, Tensor]:
        total, weight = super().lift(value, meta)
        if tau := int(meta.staleness):
            total = total * damping(self.staleness, tau, self.a, self.b)
        return total, weight


@register("strategy", "fedbuff")
@dataclass(frozen=True, kw_only=True)
class FedBuff(Strategy):
    lr: float = 1.0
    beta: float = 0.0
    staleness: Kind = "polynomial"
    a: float = 0.5
    b: int = 4
    weights: Literal["uniform", "examples"] = "uniform"

    fedavg_equivalent: ClassVar[FedAvgEquivalent] = FedAvgEquivalent(
        strategy={"lr": 1.0, "beta": 0.0}, fedavg={"weights": "uniform"}
    )

    def __post_init__(self):
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta: {self.beta} is not in [0, 1); 0 is without momentum")
        check(self.staleness, self.a, self.b)

    def averages(self):
        return 0 < self.lr <= 1 and self.beta == 0

    def init(self, model, ctx):
        return State(model, zeros_like(model) if self.beta else None)

    def reduction(self, state, ctx):
        return DampedMean(self.weights, self.staleness, self.a, self.b)

    def step(self, state, mean, ctx):
        velocity = self.beta * state.velocity + mean if self.beta else None
        return State(state.model + self.lr * (mean if velocity is None else velocity), velocity), {}
