"""FedDPA-LoRA: an adapter that all clients share, and a private one that is trained and used beside it.

    shared:    (A, B, head) <- local steps from the received values, on W;       send local minus received
    private:   (A_i, B_i)   <- local steps from its own values, on W + w s B A of the received ones;        keep

Yang, Long, Shen, Jiang, Blumenstein 2024, arXiv:2403.19211.  Each of the two trains for the whole budget.  The client
predicts with both; a client that has not trained yet, and the server, with the shared one alone at full weight.
Differs from the paper: one w for all samples, and the private adapter enters at full weight (a smaller weight would
be another scale of B_i).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from fl import ClientContext, Params, Reply, Tree, adapter, checks, join, register

from .lora import LoRA


@register("client", "feddpa_lora")
@dataclass(frozen=True, kw_only=True)
class FedDPALoRA(LoRA):
    """Local training of a shared and a private adapter.

    Args:
        weight: weight w of the shared adapter beside the private one, in [0, 1].
    """

    weight: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.within("[0, 1]", weight=self.weight, hint="0 leaves the shared adapter out of predictions")

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        shared = super().work(name, ctx, carry)
        private = self.private(ctx)
        change = super().work(name, private, carry).update.groups["model"]
        return Reply(shared.update, private.received["model"] + change)

    def gradients_per_step(self) -> int:
        return 2

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        return super().predictor(ctx if ctx.state is None else self.private(ctx))

    def private(self, ctx: ClientContext) -> ClientContext:
        """Return a context whose received model is the private adapter, on W + w s B A."""
        received, initial = join(*ctx.received.values()), ctx.initial
        pairs, changes = adapter.layers(initial.trained), {}
        for layer, (a, b) in pairs.items():
            share = self.weight * adapter.scale(ctx.module, layer)
            changes[f"{layer}.W"] = adapter.product(received[a], received[b], share)
        private = (
            initial.trained.select([name for pair in pairs.values() for name in pair])
            if ctx.state is None
            else ctx.state
        )
        trained = initial.trained.replace({name: received[name] for name in initial.trained})
        changed = replace(initial, trained=trained, frozen=adapter.folded(initial.frozen, Params.of(changes)))
        return replace(ctx, received={"model": private}, state=None, initial=changed)
