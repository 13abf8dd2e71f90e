"""RoLoRA: the two halves of an adapter take turns.

    even rounds:  B <- B + sum_i p_i (B_i - B)        odd rounds:  A <- A + sum_i p_i (A_i - A)        p_i = n_i / sum n

Chen, Guo, Ju, Dalal, Khisti 2024-25, arXiv:2409.02346, arXiv:2502.01755. Exact in the product, as the other half is common. B begins:
beside a B of zeros, A has no gradient. The halves are static groups "A" and "B", counted when a client has not yet seen their latest
version, and not while they are as the run began, which everybody knows. So a client that is always there receives r * out or r * in
floats a round and sends the other; the head, if any, goes both ways.
Neutral: none; one round is FFA-LoRA's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from fl.method.messages import Broadcast, Static
from fl.method.reduction import WeightedMean
from fl.method.strategy import Strategy
from fl.models import adapter
from fl.registry import register
from fl.tensors.params import Params
from strategies import lora_math as lora

KNOWN = -1  # the version that clients have without having received any


@dataclass(frozen=True)
class State:
    model: Params
    first: int = KNOWN  # the round that last changed A
    second: int = KNOWN  # B


@register("strategy", "rolora")
@dataclass(frozen=True, kw_only=True)
class RoLoRA(Strategy):
    weights: lora.Weights = "examples"

    client: ClassVar[str] = "rolora"
    example_config: ClassVar[dict[str, Any]] = {
        "model.adapter": {"name": "lora", "rank": 2, "targets": ["1"], "trains": ["3.*"]}
    }

    def __post_init__(self):
        lora.check_weights(self.weights)

    def init(self, model, ctx):
        lora.check_adapted(model)
        return State(model)

    def broadcast(self, state, ctx):
        sent = lora.groups(state.model)
        pairs = sent.pop("model")
        halves = {
            "A": Static(state.first, pairs.select(adapter.first(pairs))),
            "B": Static(state.second, pairs.select(adapter.second(pairs))),
        }
        return Broadcast(shared=sent, static=halves, config={"turn": ctx.round % 2})

    def reduction(self, state, ctx):
        return {group: WeightedMean(self.weights) for group in lora.groups(state.model)}

    def step(self, state, reduced, ctx):
        model = state.model.added(*reduced.values())
        return replace(state, model=model, **{"first" if ctx.round % 2 else "second": ctx.round}), {}
