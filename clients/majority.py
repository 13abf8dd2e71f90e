"""Each client answers with its most frequent label:    outputs_k = log(n_k + 1), n_k of the client's training labels being k

A client that has not counted yet, and the server, find all classes alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fl.method.client import ClientAlgorithm
from fl.method.context import Reply
from fl.method.messages import Update
from fl.registry import register


@register("client", "majority")
@dataclass(frozen=True, kw_only=True)
class Majority(ClientAlgorithm):
    sends: ClassVar[tuple[str, ...]] = ()
    receives: ClassVar[tuple[str, ...]] = ()

    def work(self, name, ctx, carry):
        counts = torch.bincount(ctx.train.take()["y"], minlength=self.classes(ctx))
        return Reply(Update({}, len(ctx.train)), counts.float())

    def predictor(self, ctx):
        counts = torch.zeros(self.classes(ctx)) if ctx.state is None else ctx.state
        return lambda x: torch.log1p(counts).expand(len(x), -1)

    def context_after_training(self, ctx, reply):
        return replace(ctx, state=reply.state)

    def classes(self, ctx):
        return int(ctx.train.arrays["y"].max()) + 1
