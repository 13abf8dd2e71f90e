"""SCAFFOLD: control variates against client drift.

    model <- model + lr * mean_{i in S} dy_i;    control <- control + 1/N * sum_{i in S} dc_i

S are the clients that answered, N is the number of all clients; `clients/scaffold.py` sends (dy_i, dc_i).
Karimireddy, Kale, Mohri, Reddi, Stich, Suresh 2020, arXiv:1910.06378, Algorithm 1.  The mean is uniform as in the
paper; the paper's |S|/N * mean(dc) is the sum over S divided by N.
Equals FedAvg: no setting.  In round 0 all controls are zero, so one round is FedAvg's with the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fl import (
    Metrics,
    OptimiserState,
    Params,
    Plain,
    Reduction,
    ServerContext,
    ServerOptimiser,
    Strategy,
    Sum,
    WeightedMean,
    register,
    zeros_like,
)


@dataclass(frozen=True)
class State:
    """The model, the mean of the controls of all N clients (zeros before round 0), and the server optimiser's state."""

    model: Params
    control: Params
    optimiser: OptimiserState


@register("strategy", "scaffold")
@dataclass(frozen=True, kw_only=True)
class Scaffold(Strategy):
    """FedAvg with control variates.

    Args:
        lr: factor of each step of the server. 1 is the paper's default.
        weights: weights of the mean of the models: `uniform` (the paper) or `examples`.
        server_optimiser: how the server moves along the mean update. `plain` is the paper's.
    """

    lr: float = 1.0
    weights: Literal["uniform", "examples"] = "uniform"
    server_optimiser: ServerOptimiser = Plain()

    client: ClassVar[str] = "scaffold"

    def init(self, model: Params, ctx: ServerContext) -> State:
        return State(model, zeros_like(model), self.server_optimiser.init(model))

    def broadcast(self, state: State, ctx: ServerContext) -> dict[str, Params]:
        return {"model": state.model, "control": state.control}

    def reduction(self, state: State, ctx: ServerContext) -> dict[str, Reduction]:
        return {"model": WeightedMean(self.weights), "control": Sum()}

    def step(self, state: State, reduced: dict[str, Params], ctx: ServerContext) -> tuple[State, Metrics]:
        model, optimiser = self.server_optimiser.step(state.model, reduced["model"], state.optimiser, self.lr)
        return State(model, state.control + reduced["control"] / ctx.population, optimiser), {}
