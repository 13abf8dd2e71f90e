"""FLoRA: adapters of any ranks are stacked, which is exact, and folded into the frozen weights; then adapters restart.

    A = [p_1 A_1; ..; p_K A_K],  B = [B_1, .., B_K];    W <- W + s B A = W + s sum_i p_i B_i A_i;    A <- fresh, B <- 0

Wang, Shen, He, Sun, Wang, Lyu, Li 2024, arXiv:2409.05976.  The model is built at the largest rank; s is the same for
all ranks, so alpha grows with the rank.  Up: r_i (in + out) per layer.  Down: each stack that the client lacks, (in +
out) sum_i r_i, or their dense sum since the start if that is smaller (`lora_math.Base`).  The fresh A is drawn from the
round's number on both sides (the first one is the model's own) and costs nothing.  A head is averaged.
Equals FedAvg: no setting.  A cohort of one keeps that client's product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fl import Broadcast, Metrics, Params, Reduction, ServerContext, Strategy, WeightedMean, adapter, random, register

from . import lora_math as lora


@dataclass(frozen=True)
class State:
    """The trained tensors and the frozen weights.

    Args:
        model: trained tensors; B is zero between rounds.
        base: frozen weights with their increments.
        draw: address of the present A; 0 is the model's first A.
    """

    model: Params
    base: lora.Base
    draw: int = 0


@dataclass(frozen=True)
class Config:
    """Configuration of a client: the address of its A, and its rank."""

    draw: int
    ranks: tuple[int, ...]

    def __call__(self, client: int) -> dict[str, int]:
        return {"draw": self.draw, "rank": lora.rank_of(self.ranks, client)}


@register("strategy", "flora")
@dataclass(frozen=True, kw_only=True)
class FLoRA(Strategy):
    """Stack adapters of several ranks and fold them into the frozen weights.

    Args:
        ranks: the clients' ranks; they repeat over the client ids. Empty: all have the model's rank.
        weights: weights of the mean: `examples` (number of training samples) or `uniform`.
    """

    ranks: tuple[int, ...] = ()
    weights: lora.Weights = "examples"

    client: ClassVar[str] = "flora"
    example_config: ClassVar[dict[str, Any]] = {
        "model.adapter": {"name": "lora", "rank": 3, "targets": ["1"], "trains": ["3.*"]},
        "strategy.ranks": [1, 3],
    }

    def __post_init__(self) -> None:
        lora.check_weights(self.weights)
        lora.check_ranks(self.ranks)

    def init(self, model: Params, ctx: ServerContext) -> State:
        lora.check_adapted(model, self.ranks, products=True)
        return State(model, lora.Base.of(model, ctx.frozen))

    def model(self, state: State) -> Params:
        return lora.with_base(state.model, state.base)

    def broadcast(self, state: State, ctx: ServerContext) -> Broadcast:
        head = {name: group for name, group in lora.groups(state.model).items() if name == "head"}
        config = Config(state.draw, self.ranks) if self.ranks else {"draw": state.draw}
        return Broadcast(shared=head, static=state.base.static, config=config)

    def reduction(self, state: State, ctx: ServerContext) -> dict[str, Reduction]:
        sent = lora.groups(state.model)
        means: dict[str, Reduction] = {group: WeightedMean(self.weights) for group in sent}
        return means | {"model": lora.Products(sent["model"], self.weights)}

    def step(self, state: State, reduced: dict[str, Any], ctx: ServerContext) -> tuple[State, Metrics]:
        change = lora.increment(reduced["model"].pieces, lora.scales(ctx.module, state.model))
        draw = int(random.hash64(ctx.seed, "flora", ctx.round)) >> 1 | 1
        model = adapter.redrawn(state.model, draw)
        if "head" in reduced:
            model = model.added(reduced["head"])
        return State(model, state.base.plus(change, ctx.round), draw), {}
