"""FedSA-LoRA: of an adapter W + s B A only A is shared; B and the head stay with the client.

    A <- A + sum_i p_i (A_i - A),    p_i = n_i / sum n        (weights=uniform: 1 / number of clients)

Guo, Zeng, Wang, Fan, Liu, Yin 2024 (ICLR 2025), arXiv:2410.01463; with model.adapter lora, rslora or vera (VeRA
shares d and keeps b).  Traffic per client and round: sum over layers of r * in floats, up and down (VeRA: of r).  The
server never sees a B: the run's model has the initial ones (zeros), and the clients' own metrics count (clients/*,
val/*).
Differs from the authors' program, which kept one model for all clients, so B went from client to client.
Equals FedAvg: no setting.  With one client it is that client's local training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fl import Metrics, Params, Reduction, ServerContext, Strategy, WeightedMean, adapter, checks, register

from . import lora_math as lora


@register("strategy", "fedsa_lora")
@dataclass(frozen=True, kw_only=True)
class FedSALoRA(Strategy):
    """Average the A halves of adapters.

    Args:
        head: `private` keeps the other trained tensors with the clients; `shared` averages them as the group "head".
        weights: weights of the mean: `examples` (number of training samples) or `uniform`.
    """

    head: Literal["private", "shared"] = "private"
    weights: lora.Weights = "examples"

    client: ClassVar[str] = "fedsa_lora"
    example_config: ClassVar[dict[str, Any]] = {"model.adapter": {"name": "lora", "rank": 2}}

    def __post_init__(self) -> None:
        lora.check_weights(self.weights)
        checks.one_of(("private", "shared"), head=self.head)

    def init(self, model: Params, ctx: ServerContext) -> Params:
        if not adapter.first(model):
            raise ValueError("model.adapter: there is no adapter with a first half to share; set lora, rslora or vera")
        return model

    def broadcast(self, state: Params, ctx: ServerContext) -> dict[str, Params]:
        shared = {"model": state.select(adapter.first(state))}
        head = adapter.head(state)
        return shared | {"head": state.select(head)} if self.head == "shared" and head else shared

    def reduction(self, state: Params, ctx: ServerContext) -> dict[str, Reduction]:
        return {group: WeightedMean(self.weights) for group in self.broadcast(state, ctx)}

    def step(self, state: Params, reduced: dict[str, Params], ctx: ServerContext) -> tuple[Params, Metrics]:
        return state.added(*reduced.values()), {}
