"""Part of the model is averaged, part stays with each client: the rule that FedPer, FedRep, LG-FedAvg, FedBABU and FedBN share.

    u <- u + sum_i p_i (u_i - u),    p_i = n_i / sum n        (weights=uniform: 1 / number of clients)

Only u goes down and comes up; which names are own travels as configuration. The model of the run has the first own part; what counts are the clients' own figures (clients/*, val/*).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar, Literal

from fl.method.messages import Broadcast
from fl.method.reduction import WeightedMean
from fl.method.strategy import Strategy
from fl.models.layers import head_names
from fl.tensors.params import match


def shared_names(names: list[str], own: list[str]) -> list[str]:
    """`names` without those in `own`, in order."""
    kept = set(own)
    return [name for name in names if name not in kept]


@dataclass(frozen=True, kw_only=True)
class Partial(Strategy):
    """`own`: glob patterns of what stays with the client; by default the last linear layer."""

    own: tuple[str, ...] | None = None
    weights: Literal["examples", "uniform"] = "examples"

    client: ClassVar[str] = "partial"

    def __post_init__(self):
        if self.weights not in ("examples", "uniform"):
            raise ValueError(f"weights: {self.weights!r} is not one of ['examples', 'uniform']")

    def averages(self):
        return True

    def default_own(self, model, module) -> list[str]:
        return head_names(module, model)

    def own_names(self, model, ctx) -> list[str]:
        return self.default_own(model, ctx.module) if self.own is None else match(model, self.own)

    def init(self, model, ctx):
        own = self.own_names(model, ctx)
        if not own:
            logging.getLogger(__name__).warning("strategy: nothing stays with the clients; this is FedAvg")
        if not shared_names(list(model), own):
            raise ValueError(f"own: {own} is all of the model; share some of it, or use strategy local")
        return model

    def broadcast(self, state, ctx):
        own = self.own_names(state, ctx)
        return Broadcast({"model": state.select(shared_names(list(state), own))}, config={"own": own})

    def reduction(self, state, ctx):
        return WeightedMean(self.weights)

    def step(self, state, mean, ctx):
        return state.added(mean), {}
