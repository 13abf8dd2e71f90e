"""Learning without forgetting with federated averaging (FedLwF): the model as the last task left it teaches the next one.

    clients minimise  L_i(w) + weight * T^2 * KL(softmax(z_teacher / T) || softmax(z_w / T));    the server averages as FedAvg

Li, Hoiem 2016, arXiv:1606.09282; with federated averaging also in Usmanova et al. 2021, arXiv:2109.04197. z are outputs on the
client's own samples of the present task. Where each task has outputs of its own, those of the tasks before are distilled. The
teacher goes down once per task and client, P floats.  Neutral: weight=0 is FedAvg, to the bit in a loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fl.method.messages import Broadcast, Static
from fl.method.reduction import WeightedMean
from fl.method.strategy import FedAvgEquivalent, Strategy
from fl.registry import register
from fl.tensors.params import Params


@dataclass(frozen=True)
class State:
    model: Params
    teacher: Params  # the model at the end of the period before; the first model in the first


@register("strategy", "fedlwf")
@dataclass(frozen=True, kw_only=True)
class FedLwF(Strategy):
    weight: float = 1.0
    temperature: float = 2.0
    lr: float = 1.0
    weights: Literal["examples", "uniform"] = "examples"

    client: ClassVar[str] = "fedlwf"
    fedavg_equivalent: ClassVar[FedAvgEquivalent] = FedAvgEquivalent(strategy={"weight": 0.0}, bits=False)

    def __post_init__(self):
        if self.weight < 0:
            raise ValueError(f"weight: {self.weight} is negative; 0 is FedAvg")
        if self.temperature <= 0:
            raise ValueError(f"temperature: {self.temperature} is not positive")

    def init(self, model, ctx):
        return State(model, model)

    def broadcast(self, state, ctx):
        static = {"teacher": Static(ctx.period, state.teacher)} if ctx.period else {}
        config = {"weight": self.weight, "temperature": self.temperature}
        return Broadcast(shared={"model": state.model}, static=static, config=config)

    def reduction(self, state, ctx):
        return WeightedMean(self.weights)

    def round(self, state, ctx):
        if ctx.period_begins:
            state = State(state.model, state.model)
        return (yield from super().round(state, ctx))

    def step(self, state, reduced, ctx):
        return State(state.model + self.lr * reduced, state.teacher), {}
