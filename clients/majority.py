"""Each client predicts its most frequent label.

    outputs_k = log(n_k + 1),  n_k: number of its training labels equal to k

A client that has not counted yet, and the server, give all classes the same score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fl import ClientAlgorithm, ClientContext, Reply, Tree, Update, register


@register("client", "majority")
@dataclass(frozen=True, kw_only=True)
class Majority(ClientAlgorithm):
    """Count labels."""

    sends: ClassVar[tuple[str, ...]] = ()
    receives: ClassVar[tuple[str, ...]] = ()
    classes_only: ClassVar[bool] = True

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        counts = torch.bincount(ctx.train.take()["y"], minlength=self.classes(ctx))
        return Reply(Update({}, len(ctx.train)), counts.float())

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        counts = torch.zeros(self.classes(ctx)) if ctx.state is None else ctx.state
        return lambda x: torch.log1p(counts).expand(len(x), -1)

    def context_after_training(self, ctx: ClientContext, reply: Reply) -> ClientContext:
        return replace(ctx, state=reply.state)

    def classes(self, ctx: ClientContext) -> int:
        """Return the number of classes of the data set."""
        return int(ctx.train.arrays["y"].max()) + 1
