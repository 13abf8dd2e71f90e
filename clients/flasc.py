"""FLASC: dense local training from the masked model; only the largest entries of the change are sent.

    start  M * w, zeros outside M          every entry may move
    send   the floor(d_up P) entries of w_i - M * w of largest magnitude; among equal ones the first

Kuo et al. 2024, arXiv:2406.05233 (its delta has the other sign).  The change is measured from the masked start:
measured from the server's w, pruned entries would be pulled to zero.  d_up comes with the broadcast.  The release
trains with SGD, momentum .9, for one epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from fl import (
    ClientContext,
    Layout,
    LocalTraining,
    Params,
    Reply,
    Sparse,
    TrainingInputs,
    TrainingResult,
    Tree,
    keep_largest,
    register,
)


def dense(value: Sparse | Params, layout: Layout) -> Params:
    """Return parameters of `layout`, with zeros for the entries that `value` lacks."""
    return value if isinstance(value, Params) else Params.expand(layout, value.dense())


@register("client", "flasc")
@dataclass(frozen=True, kw_only=True)
class FLASC(LocalTraining):
    """Local training from a sparse model, which sends a sparse change; its density comes with the broadcast."""

    receives: ClassVar[tuple[str, ...]] = ("model", "up")

    def start(self, inputs: TrainingInputs) -> Params:
        return dense(inputs.received["model"], inputs.initial.trained.layout)

    def finish(self, end: TrainingResult) -> tuple[Mapping[str, Tree], Tree]:
        share = end.config.get("up", 1.0)
        return {"model": end.delta if share == 1 else keep_largest(end.delta.compact(), share)}, None

    def context_after_training(self, ctx: ClientContext, reply: Reply) -> ClientContext:
        """Return the context with the sent entries added; the rest of the change is lost."""
        start = self.start(self.inputs(ctx))
        sent = dense(reply.update.groups["model"], start.layout)
        return replace(ctx, received={**ctx.received, "model": start + sent})
