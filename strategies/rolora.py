"""RoLoRA: the two halves of an adapter are trained in turn.

    even rounds:  B <- B + sum_i p_i (B_i - B)        odd rounds:  A <- A + sum_i p_i (A_i - A)        p_i = n_i / sum n

Chen, Guo, Ju, Dalal, Khisti 2024-25, arXiv:2409.02346, arXiv:2502.01755.  Exact in the product, as the other half is
the same for all.  B is first: with B = 0, A has no gradient.  The halves are static groups "A" and "B": the ledger
counts one when a client has not seen its latest version, and never while it has its initial values, which all clients
know.  So a client that takes part in every round receives r * out or r * in floats and sends the other half; the
head, if any, goes both ways.
Equals FedAvg: no setting; one round is FFA-LoRA's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from fl import Broadcast, Metrics, Params, Reduction, ServerContext, Static, Strategy, WeightedMean, adapter, register

from . import lora_math as lora

KNOWN = -1  # the version that clients have without having received any


@dataclass(frozen=True)
class State:
    """The model, and the rounds that last changed A (`first`) and B (`second`)."""

    model: Params
    first: int = KNOWN
    second: int = KNOWN


@register("strategy", "rolora")
@dataclass(frozen=True, kw_only=True)
class RoLoRA(Strategy):
    """Average the A and B halves of adapters in turn.

    Args:
        weights: weights of the mean: `examples` (number of training samples) or `uniform`.
    """

    weights: lora.Weights = "examples"

    client: ClassVar[str] = "rolora"
    example_config: ClassVar[dict[str, Any]] = {
        "model.adapter": {"name": "lora", "rank": 2, "targets": ["1"], "trains": ["3.*"]}
    }

    def __post_init__(self) -> None:
        lora.check_weights(self.weights)

    def init(self, model: Params, ctx: ServerContext) -> State:
        lora.check_adapted(model)
        return State(model)

    def broadcast(self, state: State, ctx: ServerContext) -> Broadcast:
        sent = lora.groups(state.model)
        pairs = sent.pop("model")
        halves = {
            "A": Static(state.first, pairs.select(adapter.first(pairs))),
            "B": Static(state.second, pairs.select(adapter.second(pairs))),
        }
        return Broadcast(shared=sent, static=halves, config={"turn": ctx.round % 2})

    def reduction(self, state: State, ctx: ServerContext) -> dict[str, Reduction]:
        return {group: WeightedMean(self.weights) for group in lora.groups(state.model)}

    def step(self, state: State, reduced: dict[str, Params], ctx: ServerContext) -> tuple[State, Metrics]:
        state = replace(state, model=state.model.added(*reduced.values()))
        return (replace(state, first=ctx.round) if ctx.round % 2 else replace(state, second=ctx.round)), {}
