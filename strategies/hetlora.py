"""HetLoRA: clients of several ranks share one pair of factors; missing rows and columns are zeros.

    down: the first r_i rows of A, columns of B  A <- sum_i w_i pad(A_i),  B <- sum_i w_i pad(B_i),  w_i = ||B_i
        A_i||_F / sum

Cho, Liu, Xu, Fahrezi, Joshi 2024 (EMNLP 2024), arXiv:2401.06432.  The model is built at the largest rank; s is the
same for all ranks, so alpha grows with the rank.  Clients prune their ranks (`clients/hetlora.py`); the server
remembers them.  The norm is over all layers, one weight per client; if all products are zero the mean is uniform.  A
head is averaged by samples. Up and down: r_i (in + out) per layer.  Not exact in the product, and not a sum of the
clients' messages alone.
Equals FedIT: with equal ranks, equal norms and gamma=1 it is FedIT with uniform weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fl import (
    Broadcast,
    Meta,
    Metrics,
    Params,
    Reduction,
    ServerContext,
    Strategy,
    Tree,
    WeightedMean,
    adapter,
    checks,
    register,
)

from . import lora_math as lora

Padding = tuple[Params, Params, float, int, dict[int, int]]  # weighted sum, sum, norms, count, client -> rank


@dataclass(frozen=True)
class State:
    """The model, and the rank of each client: (N,) int16."""

    model: Params
    ranks: Tensor


@dataclass(frozen=True)
class ClientRank:
    """Row of a broadcast: the first r pairs, r being the client's present rank."""

    ranks: Tensor

    def __call__(self, client: int, shared: Mapping[str, Params], state: Tree) -> Params:
        rank = self.ranks[client % len(self.ranks)] if client >= 0 else self.ranks.max()
        return adapter.at_rank(shared["pairs"], int(rank))


@dataclass(frozen=True)
class Padded(Reduction):
    """Mean of the clients' A and B, padded with zeros and weighted by the norms of the products; and client -> rank.

    If all norms are zero the mean is uniform.
    """

    start: Params

    def lift(self, value: Params, meta: Meta) -> Padding:
        local = adapter.resized(self.start, adapter.shapes(value)) + value
        pairs = adapter.layers(local).values()
        norm = float(sum(lora.product_norm(local[a], local[b]) ** 2 for a, b in pairs) ** 0.5)
        rank = max(len(local[a]) for a, _ in pairs)
        local = adapter.resized(local, adapter.shapes(self.start))
        return norm * local, local, norm, 1, {int(meta.client): rank}

    def merge(self, a: Padding, b: Padding) -> Padding:
        return a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3], a[4] | b[4]

    def finish(self, acc: Padding) -> tuple[Params, dict[int, int]]:
        weighted, plain, norm, count, ranks = acc
        return (weighted / norm if norm > 0 else plain / count), ranks


@register("strategy", "hetlora")
@dataclass(frozen=True, kw_only=True)
class HetLoRA(Strategy):
    """Average adapters of several ranks, padded with zeros.

    Args:
        ranks: the clients' first ranks; they repeat over the client ids. Empty: all have the model's rank.
        gamma: share of its pairs that a client keeps when it prunes, in (0, 1]. 1 prunes nothing.
        lam: weight of the penalty on the last pairs, at least 0.
    """

    ranks: tuple[int, ...] = ()
    gamma: float = 0.99
    lam: float = 0.001

    client: ClassVar[str] = "hetlora"
    example_config: ClassVar[dict[str, Any]] = {"model.adapter": {"name": "lora", "rank": 3}, "strategy.ranks": [1, 3]}

    def __post_init__(self) -> None:
        lora.check_ranks(self.ranks)
        checks.within("(0, 1]", gamma=self.gamma, hint="1 prunes nothing")
        checks.not_negative(lam=self.lam, hint="0 puts no penalty on the last pairs")

    def init(self, model: Params, ctx: ServerContext) -> State:
        lora.check_adapted(model, self.ranks)
        built = max(len(model[a]) for a, _ in adapter.layers(model).values())
        ranks = torch.tensor(self.ranks or (built,), dtype=torch.int16)
        return State(model, ranks[torch.arange(ctx.population) % len(ranks)])

    def broadcast(self, state: State, ctx: ServerContext) -> Broadcast:
        sent = lora.groups(state.model)
        pairs = sent.pop("model")
        return Broadcast(
            shared=sent | {"pairs": pairs},
            rows={"model": ClientRank(state.ranks)},
            config={"gamma": self.gamma, "lam": self.lam},
            hidden=("pairs",),
        )

    def reduction(self, state: State, ctx: ServerContext) -> dict[str, Reduction]:
        sent = lora.groups(state.model)
        means: dict[str, Reduction] = {group: WeightedMean() for group in sent}
        return means | {"model": Padded(sent["model"])}

    def step(self, state: State, reduced: dict[str, Any], ctx: ServerContext) -> tuple[State, Metrics]:
        mean, reported = reduced["model"]
        model = state.model.replace(mean)
        if "head" in reduced:
            model = model.added(reduced["head"])
        ranks = state.ranks.clone()
        ranks[list(reported)] = torch.tensor(list(reported.values()), dtype=ranks.dtype)
        return State(model, ranks), {"rank": ranks.double().mean()}
