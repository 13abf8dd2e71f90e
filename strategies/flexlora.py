"""FlexLoRA: the exact mean of the clients' products, cut to each client's rank by singular values.

    M = sum_i p_i s B_i A_i = U S V^T;    client of rank r:  B = U_r S_r / s,  A = V_r^T

Bai, Chen, Qian, Yao, Li 2024, arXiv:2402.11505.  The model is built at the largest rank; s is the same for all ranks,
so alpha grows with the rank.  Singular values are sorted, so a client's factors are the first r pairs of the largest.
Up and down: r_i (in + out) per layer; the server handles in * out.  A head is averaged. Exact if no M has a rank
above the largest r.
Equals FedAvg: no setting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fl import Broadcast, Metrics, Params, Reduction, ServerContext, Strategy, WeightedMean, adapter, register

from . import lora_math as lora


@register("strategy", "flexlora")
@dataclass(frozen=True, kw_only=True)
class FlexLoRA(Strategy):
    """Average the products of adapters of several ranks.

    Args:
        ranks: the clients' ranks; they repeat over the client ids. Empty: all have the model's rank.
        weights: weights of the mean: `examples` (number of training samples) or `uniform`.
    """

    ranks: tuple[int, ...] = ()
    weights: lora.Weights = "examples"

    client: ClassVar[str] = "lora"
    example_config: ClassVar[dict[str, Any]] = {
        "model.adapter": {"name": "lora", "rank": 3, "targets": ["1"], "trains": ["3.*"]},
        "strategy.ranks": [1, 3],
    }

    def __post_init__(self) -> None:
        lora.check_weights(self.weights)
        lora.check_ranks(self.ranks)

    def init(self, model: Params, ctx: ServerContext) -> Params:
        lora.check_adapted(model, self.ranks, products=True)
        return model

    def broadcast(self, state: Params, ctx: ServerContext) -> Broadcast | dict[str, Params]:
        sent = lora.groups(state)
        if not self.ranks:
            return sent
        pairs = sent.pop("model")
        return Broadcast(shared=sent | {"pairs": pairs}, rows={"model": lora.FirstRanks(self.ranks)}, hidden=("pairs",))

    def reduction(self, state: Params, ctx: ServerContext) -> dict[str, Reduction]:
        sent = lora.groups(state)
        means: dict[str, Reduction] = {group: WeightedMean(self.weights) for group in sent}
        return means | {"model": lora.Products(sent["model"], self.weights)}

    def step(self, state: Params, reduced: dict[str, Any], ctx: ServerContext) -> tuple[Params, Metrics]:
        changed = {}
        for layer, (a, b) in adapter.layers(state).items():
            s = adapter.scale(ctx.module, layer)
            changed[a], changed[b] = lora.flex_svd(s * lora.dense(reduced["model"].pieces[layer]), len(state[a]), s)
        heads = [reduced["head"]] if "head" in reduced else []
        return state.replace(changed).added(*heads), {}
