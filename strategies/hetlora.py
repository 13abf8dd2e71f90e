"""HetLoRA: clients of several ranks share one pair of factors; zeros fill up what a client lacks.

    down: the first r_i rows of A, columns of B        A <- sum_i w_i pad(A_i),   B <- sum_i w_i pad(B_i),   w_i = ||B_i A_i||_F / sum

Cho, Liu, Xu, Fahrezi, Joshi 2024 (EMNLP 2024), arXiv:2401.06432. `ranks` go round the clients by id at first (empty: the model's rank); the model is
built at the largest, and s is common, alpha growing with the rank. Clients prune their ranks (`clients/hetlora.py`): `gamma` says which
pairs are a client's tail (1: none, no pruning), `lam` how much they are pressed. A client's rank is the server's to remember.
The norm is over all layers, one weight per client; if all products are zero the mean is uniform. A head is averaged by samples. Up
and down: r_i (in + out) per layer. Not exact in the product, and not a sum of what clients send alone.
Neutral: with equal ranks, equal norms and gamma=1 it is FedIT with uniform weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fl.method.messages import Broadcast
from fl.method.reduction import Meta, Reduction, WeightedMean
from fl.method.strategy import Strategy
from fl.models import adapter
from fl.registry import register
from fl.tensors.params import Params
from strategies import lora_math as lora


@dataclass(frozen=True)
class State:
    model: Params
    ranks: Tensor  # (N,) int16, of each client


@dataclass(frozen=True)
class OwnRank:
    """The row of a broadcast that holds the first pairs, as many as the client's rank."""

    ranks: Tensor

    def __call__(self, client: int, shared: Mapping[str, Params]) -> Params:
        rank = self.ranks[client % len(self.ranks)] if client >= 0 else self.ranks.max()
        return adapter.at_rank(shared["pairs"], int(rank))


@dataclass(frozen=True)
class Padded(Reduction):
    """(mean of the clients' A and B, filled up with zeros, by the norm of the product; client -> rank). Where all norms are
    zero the mean is plain."""

    start: Params

    def lift(self, value: Params, meta: Meta):
        local = adapter.resized(self.start, adapter.shapes(value)) + value
        pairs = adapter.layers(local).values()
        norm = float(sum(lora.product_norm(local[a], local[b]) ** 2 for a, b in pairs) ** 0.5)
        rank = max(len(local[a]) for a, _ in pairs)
        local = adapter.resized(local, adapter.shapes(self.start))
        return norm * local, local, norm, 1, {int(meta.client): rank}

    def merge(self, x, y):
        return x[0] + y[0], x[1] + y[1], x[2] + y[2], x[3] + y[3], x[4] | y[4]

    def finish(self, acc):
        weighted, plain, norm, count, ranks = acc
        return (weighted / norm if norm > 0 else plain / count), ranks


@register("strategy", "hetlora")
@dataclass(frozen=True, kw_only=True)
class HetLoRA(Strategy):
    ranks: tuple[int, ...] = ()
    gamma: float = 0.99
    lam: float = 0.001

    client: ClassVar[str] = "hetlora"
    example_config: ClassVar[dict[str, Any]] = {"model.adapter": {"name": "lora", "rank": 3}, "strategy.ranks": [1, 3]}

    def __post_init__(self):
        lora.check_ranks(self.ranks)
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma: {self.gamma} is not in (0, 1]; 1 prunes nothing")
        if self.lam < 0:
            raise ValueError(f"lam: {self.lam} is negative; 0 puts no pressure on the last pairs")

    def init(self, model, ctx):
        lora.check_adapted(model, self.ranks)
        built = max(len(model[a]) for a, _ in adapter.layers(model).values())
        ranks = torch.tensor(self.ranks or (built,), dtype=torch.int16)
        return State(model, ranks[torch.arange(ctx.population) % len(ranks)])

    def broadcast(self, state, ctx):
        sent = lora.groups(state.model)
        pairs = sent.pop("model")
        return Broadcast(
            shared=sent | {"pairs": pairs},
            rows={"model": OwnRank(state.ranks)},
            config={"gamma": self.gamma, "lam": self.lam},
            hidden=("pairs",),
        )

    def reduction(self, state, ctx):
        sent = lora.groups(state.model)
        return {group: WeightedMean() for group in sent} | {"model": Padded(sent["model"])}

    def step(self, state, reduced, ctx):
        mean, reported = reduced["model"]
        model = state.model.replace(mean)
        if "head" in reduced:
            model = model.added(reduced["head"])
        ranks = state.ranks.clone()
        ranks[list(reported)] = torch.tensor(list(reported.values()), dtype=ranks.dtype)
        return State(model, ranks), {"rank": ranks.double().mean()}
