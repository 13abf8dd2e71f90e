"""FedDPA-LoRA: an adapter shared with all, and one of the client's own that is trained and used beside it.

    shared:    (A, B, head) <- local steps from what was received, on W;        send local minus received
    private:   (A_i, B_i)   <- local steps from its own, on W + w s B A of what was received;        keep

Yang, Long, Shen, Jiang, Blumenstein 2024, arXiv:2403.19211. `weight` is w. Each of the two trains for the whole budget. Predicts
with both; a client that has not trained yet, and the server, with the shared one alone at full weight. Differs from the paper: one w for all
samples, and the private adapter enters at full weight (a smaller one would be another scale of B_i).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from clients.lora import LoRA
from fl.method.context import Reply
from fl.models import adapter
from fl.registry import register
from fl.tensors.params import Params, join


@register("client", "feddpa_lora")
@dataclass(frozen=True, kw_only=True)
class FedDPALoRA(LoRA):
    weight: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight: {self.weight} is not in [0, 1]; 0 leaves the shared adapter out of predictions")

    def work(self, name, ctx, carry):
        shared = super().work(name, ctx, carry)
        own = self.private(ctx)
        change = super().work(name, own, carry).update.groups["model"]
        return Reply(shared.update, own.received["model"] + change)

    def gradients_per_step(self) -> int:
        return 2

    def predictor(self, ctx):
        return super().predictor(ctx if ctx.state is None else self.private(ctx))

    def private(self, ctx):
        """The context of the private adapter, as though it were what is received."""
        received, initial = join(*ctx.received.values()), ctx.initial
        pairs, increments = adapter.layers(initial.trained), {}
        for layer, (a, b) in pairs.items():
            share = self.weight * adapter.scale(ctx.module, layer)
            increments[f"{layer}.W"] = adapter.product(received[a], received[b], share)
        own = (
            initial.trained.select([name for pair in pairs.values() for name in pair])
            if ctx.state is None
            else ctx.state
        )
        trained = initial.trained.replace({name: received[name] for name in initial.trained})
        begun = replace(initial, trained=trained, frozen=adapter.folded(initial.frozen, [Params.of(increments)]))
        return replace(ctx, received={"model": own}, state=None, initial=begun)
