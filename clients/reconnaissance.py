"""Federated Reconnaissance: a client learns classes by embedding their samples, without a gradient.

    m_c, n_c = mean embedding and count of class c in the client's samples of this mission;    send (c, n_c, m_c)
    predicts with the nearest prototype, squared Euclidean distance

Hendryx, KC, Walls, Morrison 2021, arXiv:2109.00150.  The encoder predicts in evaluation mode (running statistics).
Only the increment is sent.
Differs from the authors' program: it sends the client's merged prototype and merges it again, which gives re-visited
classes a wrong weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from fl import (
    ClientAlgorithm,
    ClientContext,
    Reply,
    Tree,
    Update,
    checks,
    embed,
    merge_means,
    nearest,
    prototypes,
    register,
)


@register("client", "reconnaissance")
@dataclass(frozen=True, kw_only=True)
class Reconnaissance(ClientAlgorithm):
    """Embed the client's samples and send class means.

    Args:
        batch: samples per forward pass, at least 1.
    """

    batch: int = 256

    sends: ClassVar[tuple[str, ...]] = ("table",)
    receives: ClassVar[tuple[str, ...]] = ("encoder", "table")

    def __post_init__(self) -> None:
        checks.positive(batch=self.batch)

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        samples = ctx.train.take()
        z = embed(ctx.net(ctx.received["encoder"]), samples["x"], self.batch)
        return Reply(Update({"table": prototypes(z, samples["y"])}, len(ctx.train)))

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        net, table = ctx.net(ctx.received["encoder"]), ctx.received["table"]
        known = 0 if table is None or not len(table.keys) else int(table.keys[-1]) + 1
        labels = {"y": ctx.train.arrays["y"].cpu().numpy()}
        outputs = max(ctx.task.num_outputs(labels), known)
        return lambda x: nearest(net(x), table, outputs)

    def context_after_training(self, ctx: ClientContext, reply: Reply) -> ClientContext:
        table = merge_means(ctx.received["table"], reply.update.groups["table"])
        return replace(ctx, received={**ctx.received, "table": table})
