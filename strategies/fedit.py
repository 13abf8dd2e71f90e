"""FedIT: federated averaging of the two halves of an adapter, each by itself.

    A <- A + sum_i p_i (A_i - A),   B <- B + sum_i p_i (B_i - B),    p_i = n_i / sum n    (weights=uniform: 1 / clients)

Zhang, Vahidian, Kuo, Li, Zhang, Yu, Zhou, Wang, Chen 2023, arXiv:2305.05644.  Other trained tensors (a head) are
averaged as the group "head".  Not exact in the product: mean(B) mean(A) is not mean(B A).  Traffic: sum over layers
of r (in + out) floats, up and down.
Equals FedAvg: always, over all trained tensors; only the groups in the ledger differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fl import Broadcast, Metrics, Params, Reduction, ServerContext, Strategy, WeightedMean, register

from . import lora_math as lora


@register("strategy", "fedit")
@dataclass(frozen=True, kw_only=True)
class FedIT(Strategy):
    """Average adapters, and the head as a group of its own.

    Args:
        weights: weights of the mean: `examples` (number of training samples) or `uniform`.
    """

    weights: lora.Weights = "examples"

    client: ClassVar[str] = "lora"
    example_config: ClassVar[dict[str, Any]] = {
        "model.adapter": {"name": "lora", "rank": 2, "targets": ["1"], "trains": ["3.*"]}
    }

    def __post_init__(self) -> None:
        lora.check_weights(self.weights)

    def init(self, model: Params, ctx: ServerContext) -> Params:
        lora.check_adapted(model)
        return model

    def broadcast(self, state: Params, ctx: ServerContext) -> Broadcast | dict[str, Params]:
        return lora.groups(state)

    def reduction(self, state: Params, ctx: ServerContext) -> dict[str, Reduction]:
        return {group: WeightedMean(self.weights) for group in lora.groups(state)}

    def step(self, state: Params, reduced: dict[str, Any], ctx: ServerContext) -> tuple[Params, Metrics]:
        return state.added(*reduced.values()), {}
