"""Train the adapters that are received, and send back by how much they changed.

    (A, B, head) <- local steps from what was received;    send local minus received, group by group

Only what is received is trained; the rest of the adapters is as the run began. Factors may come at a rank below the model's: the
missing rows of A and columns of B are zeros, and as the gradient of either half of a pair is a multiple of the other half,
gradient steps keep them at zero exactly; what is sent has the rank that was received.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from fl.method.local_training import LocalTraining
from fl.models import adapter
from fl.registry import register
from fl.tensors.params import join


@register("client", "lora")
@dataclass(frozen=True, kw_only=True)
class LoRA(LocalTraining):
    sends: ClassVar[tuple[str, ...]] = ("model", "head")
    optional: ClassVar[tuple[str, ...]] = ("head",)
    receives: ClassVar[tuple[str, ...]] = ()

    def start(self, given):
        initial = given.initial.trained
        received = [
            group.select(own) for group in given.received.values() if (own := [n for n in group if n in initial])
        ]
        return adapter.resized(join(*received), adapter.shapes(initial))

    def finish(self, end):
        return self.sent(end.delta, end.received), None

    def sent(self, delta, received):
        """Of the groups `received`, the change of each, at the rank it came in."""
        return {
            name: adapter.resized(delta.select(group), adapter.shapes(group))
            for name, group in received.items()
            if name in self.sends
        }

    def context_after_training(self, ctx, reply):
        begun = self.start(self.inputs(ctx))
        for delta in reply.update.groups.values():
            begun = begun.replace(begun.select(delta) + adapter.resized(delta, adapter.shapes(begun)))
        state = ctx.state if reply.state is None else reply.state
        return replace(ctx, received={**ctx.received, "model": begun}, state=state)
