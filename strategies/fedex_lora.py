"""FedEx-LoRA: FedIT, and what it misses goes into the frozen weights.

    A <- Abar,  B <- Bbar,  W <- W + s E,    E = sum_i p_i B_i A_i - Bbar Abar = sum_i p_i (B_i - Bbar) A_i

Singhal, Ponkshe, Vepakomma 2024, arXiv:2410.09432. Exact: W + s B A is then W + s sum_i p_i B_i A_i. Up: r (in + out) per layer. Down:
as much, and E as factors, K r (in + out) of K clients, or dense, in * out, whichever is smaller. E is a static group (`lora_math.Base`),
counted when new to a client, so that one that was away catches up. Differs from the authors' program: that adds E transposed, which
suits weights stored (in, out) only.
Neutral: none; a cohort of one is FedIT's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fl.method.messages import Broadcast
from fl.method.reduction import WeightedMean
from fl.method.strategy import Strategy
from fl.models import adapter
from fl.registry import register
from fl.tensors.params import Params
from strategies import lora_math as lora


@dataclass(frozen=True)
class State:
    model: Params
    base: lora.Base


@register("strategy", "fedex_lora")
@dataclass(frozen=True, kw_only=True)
class FedExLoRA(Strategy):
    weights: lora.Weights = "examples"

    client: ClassVar[str] = "fedex_lora"
    example_config: ClassVar[dict[str, Any]] = {
        "model.adapter": {"name": "lora", "rank": 2, "targets": ["1"], "trains": ["3.*"]}
    }

    def __post_init__(self):
        lora.check_weights(self.weights)

    def init(self, model, ctx):
        lora.check_adapted(model)
        return State(model, lora.Base.of(model, ctx.frozen))

    def model(self, state):
        return lora.with_base(state.model, state.base)

    def broadcast(self, state, ctx):
        return Broadcast(shared=lora.groups(state.model), static=state.base.static)

    def reduction(self, state, ctx):
        sent = lora.groups(state.model)
        return {g: WeightedMean(self.weights) for g in sent} | {
            "model": lora.Products(sent["model"], self.weights, mean=True)
        }

    def step(self, state, reduced, ctx):
        pooled, model = reduced["model"], state.model
        missed = {
            layer: lora.residual(pooled.pieces[layer], pooled.mean[a], pooled.mean[b])
            for layer, (a, b) in adapter.layers(model).items()
        }
        model = model.replace(pooled.mean)
        if "head" in reduced:
            model = model.added(reduced["head"])
        change = lora.increment(missed, lora.scales(ctx.module, model))
        return State(model, state.base.plus(change, ctx.round)), {}
