"""FedEx-LoRA: train the received adapters on weights that the server's increments have changed.

    W <- W0 + received increments;    (A, B, head) <- local steps from the received values;    send local minus received

Singhal, Ponkshe, Vepakomma 2024, arXiv:2410.09432.  An increment is dense or a product of factors
(`fl.models.adapter.folded`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from clients.lora import LoRA
from fl import ClientContext, Params, Reply, TrainingInputs, Tree, adapter, register


@register("client", "fedex_lora")
@dataclass(frozen=True, kw_only=True)
class FedExLoRA(LoRA):
    """Local training of received adapters on changed base weights."""

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        return super().work(name, self.folded(ctx), carry)

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        return super().predictor(self.folded(ctx))

    def folded(self, ctx: ClientContext) -> ClientContext:
        """Return the context with the increments added to the frozen weights."""
        increments = [group for name, group in ctx.received.items() if name.partition(".")[0] == "base"]
        return replace(ctx, initial=replace(ctx.initial, frozen=adapter.folded(ctx.initial.frozen, increments)))

    def start(self, inputs: TrainingInputs) -> Params:
        received = {name: group for name, group in inputs.received.items() if name.partition(".")[0] != "base"}
        return super().start(replace(inputs, received=received))
