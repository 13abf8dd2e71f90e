"""Train the received adapters, and send their change.

    (A, B, head) <- local steps from the received values;    send local minus received, group by group

Only received tensors are trained; other adapters keep their initial values.  Factors may come at a rank below the
model's: the missing rows of A and columns of B are zeros. The gradient of either half of a pair is a multiple of the
other half, so gradient steps keep them at exactly zero; the message has the received rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from fl import (
    ClientContext,
    LocalTraining,
    Params,
    Reply,
    TrainingInputs,
    TrainingResult,
    Tree,
    adapter,
    join,
    register,
)


@register("client", "lora")
@dataclass(frozen=True, kw_only=True)
class LoRA(LocalTraining):
    """Local training of received adapters (and a head)."""

    sends: ClassVar[tuple[str, ...]] = ("model", "head")
    optional: ClassVar[tuple[str, ...]] = ("head",)
    receives: ClassVar[tuple[str, ...]] = ()

    def start(self, inputs: TrainingInputs) -> Params:
        initial = inputs.initial.trained
        received = [
            group.select(known) for group in inputs.received.values() if (known := [n for n in group if n in initial])
        ]
        return adapter.resized(join(*received), adapter.shapes(initial))

    def finish(self, end: TrainingResult) -> tuple[Mapping[str, Tree], Tree]:
        return self.sent(end.delta, end.received), None

    def sent(self, delta: Params, received: Mapping[str, Tree]) -> dict[str, Params]:
        """Return the change of the trained tensors of each received group, at the rank that they were received in.

        An evaluation sends the server's whole model, with tensors that this client does not train.
        """
        trained = {
            name: group.select([tensor for tensor in group if tensor in delta])
            for name, group in received.items()
            if name in self.sends
        }
        return {name: adapter.resized(delta.select(group), adapter.shapes(group)) for name, group in trained.items()}

    def context_after_training(self, ctx: ClientContext, reply: Reply) -> ClientContext:
        model = self.start(self.inputs(ctx))
        for delta in reply.update.groups.values():
            model = model.replace(model.select(delta) + adapter.resized(delta, adapter.shapes(model)))
        state = ctx.state if reply.state is None else reply.state
        return replace(ctx, received={**ctx.received, "model": model}, state=state)
