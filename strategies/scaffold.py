"""SCAFFOLD: control variates against client drift.

    model <- model + lr * mean_{i in S} dy_i;    control <- control + 1/N * sum_{i in S} dc_i        (S answered, of N clients)

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh 2020, arXiv:1910.06378, Algorithm 1; (dy_i, dc_i) are what the client
algorithm `clients/scaffold.py` sends.  The mean of the models is uniform as in the paper; weights=examples weighs it.
The paper's |S|/N * mean(dc) is the sum over S by N.  Neutral: none (without control variates it is not SCAFFOLD);
in round 0 all of them are zero, and one round is FedAvg's of the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fl.method.reduction import Sum, WeightedMean
from fl.method.strategy import Strategy
from fl.registry import register
from fl.tensors.params import Params, zeros_like


@dataclass(frozen=True)
class State:
    model: Params
    control: Params  # c, the mean of the controls of all N clients; zeros before round 0


@register("strategy", "scaffold")
@dataclass(frozen=True, kw_only=True)
class Scaffold(Strategy):
    lr: float = 1.0
    weights: Literal["uniform", "examples"] = "uniform"

    client: ClassVar[str] = "scaffold"

    def init(self, model, ctx):
        return State(model, zeros_like(model))

    def broadcast(self, state, ctx):
        return {"model": state.model, "control": state.control}

    def reduction(self, state, ctx):
        return {"model": WeightedMean(self.weights), "control": Sum()}

    def step(self, state, reduced, ctx):
        model = state.model + self.lr * reduced["model"]
        return State(model, state.control + reduced["control"] / ctx.population), {}
