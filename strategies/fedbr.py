"""FedBR: FedAvg whose clients share pseudo-data, which keep heads balanced and features near those of the server.

    before round 0      x_p = items means of per_item training samples of one client each
    in each round       w <- w + mean_i (w_i - w),    uniform weights, the projection D included

Guo, Tang, Lin 2023, arXiv:2205.13462.  `clients/fedbr.py` has the local objective.  Traffic per client and round:
|w| + |D| floats each way, |D| = 8 h^2 + 5 h for h features.  The pseudo-data cost items |x| floats once for each
client down, and items |x| floats up in all; the ledger has the latter in round -1.

Privacy: each item is the mean of `per_item` samples of one client. The server and all clients see it. A client with
fewer samples than `per_item` sends nothing.
Differs from the paper: the variant `mixture` (means of public data, mixed with each local batch) is left out.
Equals FedAvg: items=0, and the client's mu=0 and lam=0, with uniform weights, to 1e-6 (it is trained in the loop).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fl import (
    Broadcast,
    Exchange,
    FedAvgEquivalent,
    Metrics,
    OptimiserState,
    Params,
    Plain,
    RoundGenerator,
    ServerContext,
    ServerOptimiser,
    Stack,
    Static,
    Strategy,
    WeightedMean,
    checks,
    register,
)


@dataclass(frozen=True)
class State:
    """The model, what the server optimiser remembers, and the pseudo-data (items, ...)."""

    model: Params
    optimiser: OptimiserState
    pseudo: Tensor


@dataclass(frozen=True)
class Quotas:
    """What the clients are asked for: client -> configuration of the exchange.

    Args:
        items: client -> number of means that it sends.
        per_item: number of samples of each mean.
    """

    items: Mapping[int, int]
    per_item: int

    def __call__(self, client: int) -> dict[str, int]:
        """Return the configuration of a client."""
        return {"items": self.items[client], "per_item": self.per_item}


@register("strategy", "fedbr")
@dataclass(frozen=True, kw_only=True)
class FedBR(Strategy):
    """FedAvg with pseudo-data from the clients.

    Args:
        items: number of pseudo-samples, at least 0. They come from as many clients, or several from each client if
            there are fewer clients. 0 sends none, for clients with mu=0 and lam=0. The paper takes 32.
        per_item: number of samples of one client that make a pseudo-sample, at least 2. The paper takes 10.
        weights: weights of the mean: `uniform` (the paper) or `examples` (number of training samples).
        server_optimiser: how the server moves along the mean update. `plain` is the paper's.
    """

    items: int = 32
    per_item: int = 10
    weights: Literal["examples", "uniform"] = "uniform"
    server_optimiser: ServerOptimiser = Plain()

    client: ClassVar[str] = "fedbr"
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(
        strategy={"items": 0, "weights": "uniform"},
        client={"mu": 0.0, "lam": 0.0},
        fedavg={"weights": "uniform"},
        bits=False,
    )

    def __post_init__(self) -> None:
        checks.at_least(0, items=self.items)
        checks.one_of(("examples", "uniform"), weights=self.weights)
        checks.at_least(2, per_item=self.per_item, hint="a mean of one sample would show it")

    def averages(self) -> bool:
        return self.server_optimiser.averages()

    def init(self, model: Params, ctx: ServerContext) -> State:
        return State(model, self.server_optimiser.init(model), torch.empty(0, *ctx.sample_shape))

    def setup(self, state: State, ctx: ServerContext) -> RoundGenerator:
        if not self.items:
            return state, {}
        quotas = self.quotas(ctx)
        outcome = yield Exchange(Broadcast(config=quotas), {"items": Stack()}, work="means", cohort=[*quotas.items])
        answers = [] if outcome.value is None else outcome.value["items"]
        sent = [means for means, meta in sorted(answers, key=lambda answer: answer[1].client) if len(means)]
        if not sent:
            raise ValueError(f"per_item: {self.per_item} samples are more than any client that was asked has; lower it")
        pseudo = torch.cat(sent)
        return replace(state, pseudo=pseudo), {"pseudo": len(pseudo)}

    def quotas(self, ctx: ServerContext) -> Quotas:
        """Return how many pseudo-samples each client sends; clients are drawn from the seed."""
        order = torch.randperm(ctx.population, generator=ctx.generator("pseudo"))
        chosen = np.sort(order[: self.items].numpy())
        each, rest = divmod(self.items, len(chosen))
        return Quotas({int(client): each + (k < rest) for k, client in enumerate(chosen)}, self.per_item)

    def broadcast(self, state: State, ctx: ServerContext) -> Broadcast:
        static = {"pseudo": Static(0, state.pseudo)} if self.items else {}
        return Broadcast(shared={"model": state.model}, static=static)

    def reduction(self, state: State, ctx: ServerContext) -> WeightedMean:
        return WeightedMean(self.weights)

    def step(self, state: State, reduced: Params, ctx: ServerContext) -> tuple[State, Metrics]:
        model, optimiser = self.server_optimiser.step(state.model, reduced, state.optimiser)
        return replace(state, model=model, optimiser=optimiser), {}
