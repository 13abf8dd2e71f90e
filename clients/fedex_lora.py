"""FedEx-LoRA: train the received adapters on weights that the server's increments have changed.

    W <- W0 + received change;    (A, B, head) <- local steps from the received values;    send local minus received

Singhal, Ponkshe, Vepakomma 2024, arXiv:2410.09432.  The change is the sum of all increments. A client
receives the increments that it lacks, dense or as products of factors (`patched`), or the dense sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from fl import ClientContext, Params, Reply, TrainingInputs, Tree, adapter, register

from .lora import LoRA


@register("client", "fedex_lora")
@dataclass(frozen=True, kw_only=True)
class FedExLoRA(LoRA):
    """Local training of received adapters on changed base weights."""

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        return super().work(name, self.folded(ctx), carry)

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        return super().predictor(self.folded(ctx))

    def folded(self, ctx: ClientContext) -> ClientContext:
        """Return the context with the received change added to the frozen weights."""
        if "base" not in ctx.received:
            return ctx
        frozen = adapter.folded(ctx.initial.frozen, ctx.received["base"])
        return replace(ctx, initial=replace(ctx.initial, frozen=frozen))

    def patched(self, group: str, value: Tree, patch: Tree) -> Tree:
        return adapter.patched(value, patch)

    def start(self, inputs: TrainingInputs) -> Params:
        received = {name: group for name, group in inputs.received.items() if name != "base"}
        return super().start(replace(inputs, received=received))
