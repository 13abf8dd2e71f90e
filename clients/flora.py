"""FLoRA: train fresh adapters on base weights that include the adapters of earlier rounds.

    W <- W0 + received change;    A <- drawn from the round's number, B <- 0
    (A, B, head) <- local steps;    send the change

Wang, Shen, He, Sun, Wang, Lyu, Li 2024, arXiv:2409.05976.  The first A is the model's own; a client of rank r has its
first r rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from fl import ClientContext, Params, Reply, TrainingInputs, TrainingResult, Tree, adapter, register

from .fedex_lora import FedExLoRA


@register("client", "flora")
@dataclass(frozen=True, kw_only=True)
class FLoRA(FedExLoRA):
    """Local training of fresh adapters on changed base weights."""

    receives: ClassVar[tuple[str, ...]] = ()

    def start(self, inputs: TrainingInputs) -> Params:
        if "draw" not in inputs.config:  # after its own training a client continues with its adapters
            return super().start(inputs)
        initial = inputs.initial.trained
        fresh = adapter.redrawn(initial, inputs.config["draw"])
        if "rank" in inputs.config:
            fresh = adapter.resized(adapter.at_rank(fresh, inputs.config["rank"]), adapter.shapes(initial))
        return fresh.replace(inputs.received["head"]) if "head" in inputs.received else fresh

    def finish(self, end: TrainingResult) -> tuple[Mapping[str, Tree], Tree]:
        head = set(adapter.head(end.delta))
        pairs = end.delta.select([name for name in end.delta if name not in head])
        pairs = adapter.at_rank(pairs, end.config["rank"]) if "rank" in end.config else pairs
        return {"model": pairs} | ({"head": end.delta.select(head)} if head else {}), None

    def context_after_training(self, ctx: ClientContext, reply: Reply) -> ClientContext:
        return replace(super().context_after_training(ctx, reply), config={})
