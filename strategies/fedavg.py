"""Federated averaging (FedAvg).    model <- model + lr * mean(local - model)

McMahan, Moore, Ramage, Hampson, Agüera y Arcas 2017, arXiv:1602.05629.  The mean is weighted by `num_examples`.
Differs from the paper: `lr`, uniform weights and other server optimisers are additions.
Equals the paper: the defaults.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fl import (
    FedAvgEquivalent,
    Metrics,
    OptimiserState,
    Params,
    Plain,
    ServerContext,
    ServerOptimiser,
    Strategy,
    WeightedMean,
    register,
)


@dataclass(frozen=True)
class State:
    """The model and what the server optimiser remembers."""

    model: Params
    optimiser: OptimiserState


@register("strategy", "fedavg")
@dataclass(frozen=True, kw_only=True)
class FedAvg(Strategy):
    """Move the model along the mean update.

    Args:
        lr: factor of each step of the server. 1 is FedAvg.
        weights: weights of the mean: `examples` (number of training samples, FedAvg) or `uniform`.
        server_optimiser: how the server moves along the mean update, for example `{name: momentum, beta: 0.9}`.
            `plain` is FedAvg.
    """

    lr: float = 1.0
    weights: Literal["examples", "uniform"] = "examples"
    server_optimiser: ServerOptimiser = Plain()

    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(strategy={"lr": 1.0, "weights": "examples"})

    def averages(self) -> bool:
        return self.server_optimiser.averages(self.lr)

    def init(self, model: Params, ctx: ServerContext) -> State:
        return State(model, self.server_optimiser.init(model))

    def reduction(self, state: State, ctx: ServerContext) -> WeightedMean:
        return WeightedMean(self.weights)

    def step(self, state: State, reduced: Params, ctx: ServerContext) -> tuple[State, Metrics]:
        return State(*self.server_optimiser.step(state.model, reduced, state.optimiser, self.lr)), {}
