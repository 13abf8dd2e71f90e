"""FedIT: federated averaging of an adapter's two halves, each by itself.

    A <- A + sum_i p_i (A_i - A),   B <- B + sum_i p_i (B_i - B),    p_i = n_i / sum n      (weights=uniform: 1 / clients)

Zhang, Vahidian, Kuo, Li, Zhang, Yu, Zhou, Wang, Chen 2023, arXiv:2305.05644. What else is trained (a head) is averaged as the group "head".
Not exact in the product: mean(B) mean(A) is not mean(B A). Traffic: sum over layers of r (in + out) floats, up and down.
It is FedAvg over all that is trained; what is apart are the groups of the ledger.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fl.method.reduction import WeightedMean
from fl.method.strategy import Strategy
from fl.registry import register
from strategies import lora_math as lora


@register("strategy", "fedit")
@dataclass(frozen=True, kw_only=True)
class FedIT(Strategy):
    weights: lora.Weights = "examples"

    client: ClassVar[str] = "lora"
    example_config: ClassVar[dict[str, Any]] = {
        "model.adapter": {"name": "lora", "rank": 2, "targets": ["1"], "trains": ["3.*"]}
    }

    def __post_init__(self):
        lora.check_weights(self.weights)

    def init(self, model, ctx):
        lora.check_adapted(model)
        return model

    def broadcast(self, state, ctx):
        return lora.groups(state)

    def reduction(self, state, ctx):
        return {group: WeightedMean(self.weights) for group in lora.groups(state)}

    def step(self, state, reduced, ctx):
        return state.added(*reduced.values()), {}
