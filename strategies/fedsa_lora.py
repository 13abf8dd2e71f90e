"""FedSA-LoRA: of an adapter W + s B A, only A is shared; B and the head stay with the client.

    A <- A + sum_i p_i (A_i - A),    p_i = n_i / sum n        (weights=uniform: 1 / number of clients)

Guo, Zeng, Wang, Fan, Liu, Yin 2024 (ICLR 2025), arXiv:2410.01463; with model.adapter lora, rslora or vera (there d is shared, b
kept). Traffic per client and round: sum over layers of r * in floats, up and down (VeRA: of r). `head: shared` sends what else
is trained beside the adapters as a group of its own. The server never sees a B: the model of the run has the first ones (zeros), and what
counts are the clients' own figures (clients/*, val/*). Differs from the authors' program, which kept one model for all clients, so
that B went from client to client.
Neutral: with one client it is that client's local training; no setting of it is FedAvg on all tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fl.method.reduction import WeightedMean
from fl.method.strategy import Strategy
from fl.models import adapter
from fl.registry import register
from strategies import lora_math as lora


@register("strategy", "fedsa_lora")
@dataclass(frozen=True, kw_only=True)
class FedSALoRA(Strategy):
    head: Literal["own", "shared"] = "own"
    weights: lora.Weights = "examples"

    client: ClassVar[str] = "fedsa_lora"
    example_config: ClassVar[dict[str, Any]] = {"model.adapter": {"name": "lora", "rank": 2}}

    def __post_init__(self):
        lora.check_weights(self.weights)
        if self.head not in ("own", "shared"):
            raise ValueError(f"head: {self.head!r} is not one of ['own', 'shared']")

    def init(self, model, ctx):
        if not adapter.first(model):
            raise ValueError("model.adapter: there is none to share the first half of; set lora, rslora or vera")
        return model

    def broadcast(self, state, ctx):
        shared = {"model": state.select(adapter.first(state))}
        head = adapter.head(state)
        return shared | {"head": state.select(head)} if self.head == "shared" and head else shared

    def reduction(self, state, ctx):
        return {group: WeightedMean(self.weights) for group in self.broadcast(state, ctx)}

    def step(self, state, reduced, ctx):
        return state.added(*reduced.values()), {}
