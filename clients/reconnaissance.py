"""Federated Reconnaissance: a client learns classes by embedding their samples, without a gradient.

    m_c, n_c = mean embedding and count of class c in the client's samples of this mission;    send (c, n_c, m_c)
    predicts with the nearest prototype, squared Euclidean distance

Hendryx, KC, Walls, Morrison 2021, arXiv:2109.00150. The encoder predicts in evaluation mode (running statistics). What is sent is the increment
alone. The authors' program sends the client's merged prototype and merges it again, which gives re-visited classes a
wrong weight.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from fl.method.client import ClientAlgorithm
from fl.method.context import Reply
from fl.method.messages import Update
from fl.registry import register
from fl.tensors.prototypes import embed, merge, nearest, prototypes


@register("client", "reconnaissance")
@dataclass(frozen=True, kw_only=True)
class Reconnaissance(ClientAlgorithm):
    """`batch`: samples in one forward pass."""

    batch: int = 256

    sends: ClassVar[tuple[str, ...]] = ("table",)
    receives: ClassVar[tuple[str, ...]] = ("encoder", "table")

    def __post_init__(self):
        if self.batch < 1:
            raise ValueError(f"batch: {self.batch} is not positive")

    def work(self, name, ctx, carry):
        samples = ctx.train.take()
        z = embed(ctx.net(ctx.received["encoder"]), samples["x"], self.batch)
        return Reply(Update({"table": prototypes(z, samples["y"])}, len(ctx.train)))

    def predictor(self, ctx):
        net, table = ctx.net(ctx.received["encoder"]), ctx.received["table"]
        known = 0 if table is None or not len(table.keys) else int(table.keys[-1]) + 1
        outputs = max(ctx.task.num_outputs(ctx.train.arrays), known)
        return lambda x: nearest(net(x), table, outputs)

    def context_after_training(self, ctx, reply):
        table = merge(ctx.received["table"], reply.update.groups["table"])
        return replace(ctx, received={**ctx.received, "table": table})
