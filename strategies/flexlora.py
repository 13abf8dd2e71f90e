"""FlexLoRA: the exact mean of the clients' products, cut back to each client's rank by singular values.

    M = sum_i p_i s B_i A_i = U S V^T;    client of rank r:  B = U_r S_r / s,  A = V_r^T

Bai, Chen, Qian, Yao, Li 2024, arXiv:2402.11505. `ranks` go round the clients by id (empty: the model's rank); the model is built at the largest,
and s is common, alpha growing with the rank. As singular values come in order, a client's factors are the first r pairs of the
largest. Up and down: r_i (in + out) per layer; the server handles in * out. A head is averaged.
Exact if no M has a larger rank than the largest r.
Neutral: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fl.method.messages import Broadcast
from fl.method.reduction import WeightedMean
from fl.method.strategy import Strategy
from fl.models import adapter
from fl.registry import register
from strategies import lora_math as lora


@register("strategy", "flexlora")
@dataclass(frozen=True, kw_only=True)
class FlexLoRA(Strategy):
    ranks: tuple[int, ...] = ()
    weights: lora.Weights = "examples"

    client: ClassVar[str] = "lora"
    example_config: ClassVar[dict[str, Any]] = {
        "model.adapter": {"name": "lora", "rank": 3, "targets": ["1"], "trains": ["3.*"]},
        "strategy.ranks": [1, 3],
    }

    def __post_init__(self):
        lora.check_weights(self.weights)
        lora.check_ranks(self.ranks)

    def init(self, model, ctx):
        lora.check_adapted(model, self.ranks)
        return model

    def broadcast(self, state, ctx):
        sent = lora.groups(state)
        if not self.ranks:
            return sent
        pairs = sent.pop("model")
        return Broadcast(shared=sent | {"pairs": pairs}, rows={"model": lora.FirstRanks(self.ranks)}, hidden=("pairs",))

    def reduction(self, state, ctx):
        sent = lora.groups(state)
        return {g: WeightedMean(self.weights) for g in sent} | {"model": lora.Products(sent["model"], self.weights)}

    def step(self, state, reduced, ctx):
        changed = {}
        for layer, (a, b) in adapter.layers(state).items():
            s = adapter.scale(ctx.module, layer)
            changed[a], changed[b] = lora.flex_svd(s * lora.dense(reduced["model"].pieces[layer]), len(state[a]), s)
        heads = [reduced["head"]] if "head" in reduced else []
        return state.replace(changed).added(*heads), {}
