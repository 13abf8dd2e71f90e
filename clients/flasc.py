"""FLASC: dense local training from the masked model, of whose change only the largest entries are sent.

    start  M * w, zeros outside M          every entry may move
    send   of w_i - M * w the floor(d_up P) entries of largest magnitude, of equal ones the first

Kuo et al. 2024, arXiv:2406.05233 (its delta has the other sign). The change is against the masked start: against the server's w,
pruned entries would be pulled to zero. d_up comes with the broadcast. The release trains with SGD momentum .9 for an epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from fl.communication.codecs.top_k import keep_largest
from fl.method.local_training import LocalTraining
from fl.registry import register
from fl.tensors.params import Layout, Params
from fl.tensors.sparse import Sparse


def whole(value: Sparse | Params, layout: Layout) -> Params:
    """Parameters of `layout`, zero where `value` has none."""
    return value if isinstance(value, Params) else Params.expand(layout, value.dense())


@register("client", "flasc")
@dataclass(frozen=True, kw_only=True)
class FLASC(LocalTraining):
    receives: ClassVar[tuple[str, ...]] = ("model", "up")

    def start(self, given):
        return whole(given.received["model"], given.initial.trained.layout)

    def finish(self, end):
        share = end.config.get("up", 1.0)
        return {"model": end.delta if share == 1 else keep_largest(end.delta.compact(), share)}, None

    def context_after_training(self, ctx, reply):
        """With what was sent added: the rest of the change is lost."""
        start = self.start(self.inputs(ctx))
        sent = whole(reply.update.groups["model"], start.layout)
        return replace(ctx, received={**ctx.received, "model": start + sent})
