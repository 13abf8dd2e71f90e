"""FedEx-LoRA: train the received adapters on weights that the server's increments have changed.

    W <- W0 + received increments;    (A, B, head) <- local steps from what was received;    send local minus received

Singhal, Ponkshe, Vepakomma 2024, arXiv:2410.09432. An increment is dense or a product of factors (`fl.models.adapter.folded`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from clients.lora import LoRA
from fl.models import adapter
from fl.registry import register


@register("client", "fedex_lora")
@dataclass(frozen=True, kw_only=True)
class FedExLoRA(LoRA):
    def work(self, name, ctx, carry):
        return super().work(name, self.folded(ctx), carry)

    def predictor(self, ctx):
        return super().predictor(self.folded(ctx))

    def folded(self, ctx):
        """The context on the weights as they stand now."""
        increments = [group for name, group in ctx.received.items() if name.partition(".")[0] == "base"]
        return replace(ctx, initial=replace(ctx.initial, frozen=adapter.folded(ctx.initial.frozen, increments)))

    def start(self, given):
        received = {name: group for name, group in given.received.items() if name.partition(".")[0] != "base"}
        return super().start(replace(given, received=received))
