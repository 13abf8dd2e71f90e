"""FLoRA: clients' adapters are stacked, which is exact for any ranks, and folded into the frozen weights; then all begin anew.

    A = [p_1 A_1; ..; p_K A_K],  B = [B_1, .., B_K];    W <- W + s B A = W + s sum_i p_i B_i A_i;    A <- fresh, B <- 0

Wang, Shen, He, Sun, Wang, Lyu, Li 2024, arXiv:2409.05976. `ranks` go round the clients by id (empty: the model's rank); the model is built at the
largest, and s is common, alpha growing with the rank. Up: r_i (in + out) per layer. Down: the stack, (in + out) sum_i r_i, or the dense
product if that is smaller, as a static group (`lora_math.Base`) for whoever has not seen it; the fresh A is drawn from the round's
number on both sides (the first one is the model's own) and costs nothing. A head is averaged.
Neutral: none. A cohort of one keeps that client's product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fl.method.messages import Broadcast
from fl.method.reduction import WeightedMean
from fl.method.strategy import Strategy
from fl.models import adapter
from fl.registry import register
from fl.tensors import random
from fl.tensors.params import Params
from strategies import lora_math as lora


@dataclass(frozen=True)
class State:
    model: Params  # B is zero between rounds
    base: lora.Base
    draw: int = 0  # the address of the present A; 0 is the model's first


@dataclass(frozen=True)
class Config:
    """A client's config: where its A comes from, and its rank."""

    draw: int
    ranks: tuple[int, ...]

    def __call__(self, client: int) -> dict[str, int]:
        return {"draw": self.draw, "rank": lora.rank_of(self.ranks, client)}


@register("strategy", "flora")
@dataclass(frozen=True, kw_only=True)
class FLoRA(Strategy):
    ranks: tuple[int, ...] = ()
    weights: lora.Weights = "examples"

    client: ClassVar[str] = "flora"
    example_config: ClassVar[dict[str, Any]] = {
        "model.adapter": {"name": "lora", "rank": 3, "targets": ["1"], "trains": ["3.*"]},
        "strategy.ranks": [1, 3],
    }

    def __post_init__(self):
        lora.check_weights(self.weights)
        lora.check_ranks(self.ranks)

    def init(self, model, ctx):
        lora.check_adapted(model, self.ranks)
        return State(model, lora.Base.of(model, ctx.frozen))

    def model(self, state):
        return lora.with_base(state.model, state.base)

    def broadcast(self, state, ctx):
        head = {name: group for name, group in lora.groups(state.model).items() if name == "head"}
        config = Config(state.draw, self.ranks) if self.ranks else {"draw": state.draw}
        return Broadcast(shared=head, static=state.base.static, config=config)

    def reduction(self, state, ctx):
        sent = lora.groups(state.model)
        return {g: WeightedMean(self.weights) for g in sent} | {"model": lora.Products(sent["model"], self.weights)}

    def step(self, state, reduced, ctx):
        change = lora.increment(reduced["model"].pieces, lora.scales(ctx.module, state.model))
        draw = int(random.hash64(ctx.seed, "flora", ctx.round)) >> 1 | 1
        model = adapter.redrawn(state.model, draw)
        if "head" in reduced:
            model = model.added(reduced["head"])
        return State(model, state.base.plus(change, ctx.round), draw), {}
