"""FedBuff: the server collects updates in a buffer; when it is full it steps along their mean. Late updates count less.

    model <- model + lr * (1/K) sum_i s(tau_i) delta_i                  s(tau) = (1 + tau)^-a, `strategies/staleness.py`

Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba 2022, arXiv:2106.06639, Algorithm 1; a=0.5 is its 1/sqrt(1 + tau).
The paper's experiments have server momentum: `server_optimiser: {name: momentum, beta: 0.3}`.
K is set at the server: `server: {name: buffered, buffer: K, concurrency: ...}`. With a synchronous server it is the
cohort, and no update is late. The sum is divided by K, not by the sum of the s, so a buffer of late updates makes a
shorter step.
Differs from the paper: no momentum by default.
Equals FedAvg: lr=1 with a synchronous server is FedAvg with uniform weights, equal bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from fl import (
    FedAvgEquivalent,
    Meta,
    Metrics,
    Params,
    Plain,
    ServerContext,
    ServerOptimiser,
    Strategy,
    Tree,
    WeightedMean,
    register,
)

from .fedavg import State
from .staleness import Kind, check, damping


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
    """Step along the damped mean of a buffer of updates.

    Args:
        lr: factor of each step of the server. 1 is FedAvg.
        staleness: how the weight of an update falls with its staleness: `constant`, `polynomial` or `hinge`.
        a: exponent of `polynomial`, slope of `hinge`; at least 0.
        b: staleness up to which `hinge` counts an update in full, in server steps; at least 0.
        weights: weights of the mean: `uniform` (the paper) or `examples` (number of training samples).
        server_optimiser: how the server moves along the mean update. `plain` is FedAvg.
    """

    lr: float = 1.0
    staleness: Kind = "polynomial"
    a: float = 0.5
    b: int = 4
    weights: Literal["uniform", "examples"] = "uniform"
    server_optimiser: ServerOptimiser = Plain()

    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(
        strategy={"lr": 1.0}, fedavg={"weights": "uniform"}
    )

    def __post_init__(self) -> None:
        check(self.staleness, self.a, self.b)

    def averages(self) -> bool:
        return self.server_optimiser.averages(self.lr)

    def init(self, model: Params, ctx: ServerContext) -> State:
        return State(model, self.server_optimiser.init(model))

    def reduction(self, state: State, ctx: ServerContext) -> DampedMean:
        return DampedMean(self.weights, self.staleness, self.a, self.b)

    def step(self, state: State, reduced: Params, ctx: ServerContext) -> tuple[State, Metrics]:
        return State(*self.server_optimiser.step(state.model, reduced, state.optimiser, self.lr)), {}
