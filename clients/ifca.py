"""IFCA's clients: train the model that fits best.

    j = argmin_j mean training loss of model_j;    send (j, w - model_j)

Ghosh, Chung, Yin, Ramchandran 2020, arXiv:2006.04088, Algorithm 1.  Among equal losses the first wins.  A client
predicts with the model that it would choose now; a client without training data (and the server) with model 0. Loop
only: the trained model depends on the client's data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fl import ClientContext, LocalTraining, Params, Reply, Table, Tree, register

from .measure import mean_loss


@register("client", "ifca")
@dataclass(frozen=True, kw_only=True)
class IFCA(LocalTraining):
    """Local training of the best of several models."""

    sends: ClassVar[tuple[str, ...]] = ("clusters",)
    receives: ClassVar[tuple[str, ...]] = ("models",)

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        j = self.choice(ctx)
        update = super().work(name, replace(ctx, received={"model": ctx.received["models"][j]}), carry).update
        change = update.groups["model"].compact()
        chosen = Table(torch.tensor([j]), change[None], torch.tensor([len(ctx.train)]))
        return Reply(replace(update, groups={"clusters": chosen}, owned=False))

    def choice(self, ctx: ClientContext) -> int:
        """Return the index of the received model that fits the client's training data best."""
        models = ctx.received["models"]
        return min(range(len(models)), key=lambda j: mean_loss(ctx, models[j])) if len(models) > 1 else 0

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        return ctx.net(ctx.received["models"][self.choice(ctx)])

    def context_after_training(self, ctx: ClientContext, reply: Reply) -> ClientContext:
        models, chosen = list(ctx.received["models"]), reply.update.groups["clusters"]
        j = int(chosen.keys[0])
        models[j] = models[j] + Params.expand(models[j].layout, chosen.values[0])
        return replace(ctx, received={**ctx.received, "models": tuple(models)})
