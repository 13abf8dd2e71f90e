"""Base of FedPer, FedRep, LG-FedAvg, FedBABU and FedBN: one part of the model is averaged, the rest is private.

    u <- u + sum_i p_i (u_i - u),    p_i = n_i / sum n        (weights=uniform: 1 / number of clients)

Only u travels. The names of the private tensors travel as configuration, which costs no bytes. In the run's own model
the private part keeps its initial values, so the clients' own metrics count (clients/*, val/*).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from torch import nn

from fl import (
    Broadcast,
    Metrics,
    Params,
    Plain,
    ServerContext,
    ServerOptimiser,
    Strategy,
    WeightedMean,
    checks,
    head_names,
    match,
)

from .fedavg import State


def without(names: list[str], left_out: list[str]) -> list[str]:
    """Return `names` without those in `left_out`, in order.

    >>> without(["a", "b", "c"], ["b"])
    ['a', 'c']
    """
    dropped = set(left_out)
    return [name for name in names if name not in dropped]


@dataclass(frozen=True, kw_only=True)
class Partial(Strategy):
    """Average the shared part of the model.

    Args:
        private: glob patterns of the tensors that stay with each client. Default: see the method. `[]` is FedAvg.
        weights: weights of the mean: `examples` (number of training samples) or `uniform`.
        server_optimiser: how the server moves the shared part along the mean update. `plain` is the paper's.
    """

    private: tuple[str, ...] | None = None
    weights: Literal["examples", "uniform"] = "examples"
    server_optimiser: ServerOptimiser = Plain()

    client: ClassVar[str] = "partial"

    def __post_init__(self) -> None:
        checks.one_of(("examples", "uniform"), weights=self.weights)

    def averages(self) -> bool:
        return self.server_optimiser.averages()

    def default_private(self, model: Params, module: nn.Module) -> list[str]:
        """Return the names of the private tensors if no patterns are given: the last linear layer."""
        return head_names(module, model)

    def private_names(self, model: Params, ctx: ServerContext) -> list[str]:
        """Return the names of the private tensors."""
        return self.default_private(model, ctx.module) if self.private is None else match(model, self.private)

    def shared_names(self, model: Params, ctx: ServerContext) -> list[str]:
        """Return the names of the tensors that travel."""
        return without(list(model), self.private_names(model, ctx))

    def init(self, model: Params, ctx: ServerContext) -> State:
        private, shared = self.private_names(model, ctx), self.shared_names(model, ctx)
        if not private:
            logging.getLogger(__name__).warning("strategy: no tensor is private; this is FedAvg")
        if not shared:
            raise ValueError(f"private: {private} is the whole model; share some of it, or use strategy local")
        return State(model, self.server_optimiser.init(model.select(shared)))

    def broadcast(self, state: State, ctx: ServerContext) -> Broadcast:
        shared = state.model.select(self.shared_names(state.model, ctx))
        return Broadcast({"model": shared}, config={"private": self.private_names(state.model, ctx)})

    def reduction(self, state: State, ctx: ServerContext) -> WeightedMean:
        return WeightedMean(self.weights)

    def step(self, state: State, reduced: Params, ctx: ServerContext) -> tuple[State, Metrics]:
        shared, optimiser = self.server_optimiser.step(state.model.select(list(reduced)), reduced, state.optimiser)
        return replace(state, model=state.model.replace(shared), optimiser=optimiser), {}
