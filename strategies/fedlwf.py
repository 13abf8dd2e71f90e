"""Learning without forgetting with federated averaging (FedLwF): the last task's final model teaches the next task.

    clients minimise  L_i(w) + weight * T^2 * KL(softmax(z_teacher / T) || softmax(z_w / T))
    the server averages as FedAvg

Li, Hoiem 2016, arXiv:1606.09282; with federated averaging also in Usmanova et al. 2021, arXiv:2109.04197.  z are
outputs on the client's own samples of the present task.  If each task has its own outputs, or a masked head, the
outputs of earlier tasks are distilled.  The teacher goes down once per task and client: P floats.
Equals FedAvg: weight=0, equal bits in the loop.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from fl import (
    Broadcast,
    FedAvgEquivalent,
    Metrics,
    OptimiserState,
    Params,
    Plain,
    RoundGenerator,
    ServerContext,
    ServerOptimiser,
    Static,
    Strategy,
    WeightedMean,
    checks,
    register,
)


@dataclass(frozen=True)
class State:
    """The model, the teacher (the model at the end of the last task), and the server optimiser's state."""

    model: Params
    teacher: Params
    optimiser: OptimiserState


@register("strategy", "fedlwf")
@dataclass(frozen=True, kw_only=True)
class FedLwF(Strategy):
    """FedAvg over clients that distil the model of the last task.

    Args:
        weight: weight of the distillation loss, at least 0. 0 is FedAvg.
        temperature: temperature T of the distillation, positive.
        lr: factor of each step of the server. 1 is FedAvg.
        weights: weights of the mean: `examples` (number of training samples) or `uniform`.
        server_optimiser: how the server moves along the mean update. `plain` is FedAvg.
    """

    weight: float = 1.0
    temperature: float = 2.0
    lr: float = 1.0
    weights: Literal["examples", "uniform"] = "examples"
    server_optimiser: ServerOptimiser = Plain()

    client: ClassVar[str] = "fedlwf"
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(strategy={"weight": 0.0}, bits=False)

    def __post_init__(self) -> None:
        checks.not_negative(weight=self.weight, hint="0 is FedAvg")
        checks.positive(temperature=self.temperature)

    def averages(self) -> bool:
        return self.server_optimiser.averages(self.lr)

    def init(self, model: Params, ctx: ServerContext) -> State:
        return State(model, model, self.server_optimiser.init(model))

    def broadcast(self, state: State, ctx: ServerContext) -> Broadcast:
        static = {"teacher": Static(ctx.period, state.teacher)} if ctx.period else {}
        config = {"weight": self.weight, "temperature": self.temperature}
        return Broadcast(shared={"model": state.model}, static=static, config=config)

    def reduction(self, state: State, ctx: ServerContext) -> WeightedMean:
        return WeightedMean(self.weights)

    def round(self, state: State, ctx: ServerContext) -> RoundGenerator:
        if ctx.period_begins:
            state = replace(state, teacher=state.model)
        return (yield from super().round(state, ctx))

    def step(self, state: State, reduced: Params, ctx: ServerContext) -> tuple[State, Metrics]:
        model, optimiser = self.server_optimiser.step(state.model, reduced, state.optimiser, self.lr)
        return State(model, state.teacher, optimiser), {}
