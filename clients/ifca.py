"""IFCA's clients: train the model that fits best.    j = argmin_j mean training loss of model_j;    send (j, w - model_j)

Ghosh, Chung, Yin, Ramchandran 2020, arXiv:2006.04088, Algorithm 1.  Of equal losses the first; predicts with the model it
would choose now, a client without training data (and the server) with model 0.
Loop only: what a client trains depends on its data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from clients.measure import mean_loss
from fl.method.context import Reply
from fl.method.local_training import LocalTraining
from fl.registry import register
from fl.tensors.params import Params
from fl.tensors.sparse import Table


@register("client", "ifca")
@dataclass(frozen=True, kw_only=True)
class IFCA(LocalTraining):
    sends: ClassVar[tuple[str, ...]] = ("clusters",)
    receives: ClassVar[tuple[str, ...]] = ("models",)

    def work(self, name, ctx, carry):
        j = self.choice(ctx)
        update = super().work(name, replace(ctx, received={"model": ctx.received["models"][j]}), carry).update
        moved = update.groups["model"].compact()
        own = Table(torch.tensor([j]), moved[None], torch.tensor([len(ctx.train)]))
        return Reply(replace(update, groups={"clusters": own}, owned=False))

    def choice(self, ctx):
        """Which of the models received fits the client's training data best."""
        models = ctx.received["models"]
        return min(range(len(models)), key=lambda j: mean_loss(ctx, models[j])) if len(models) > 1 else 0

    def predictor(self, ctx):
        return ctx.net(ctx.received["models"][self.choice(ctx)])

    def context_after_training(self, ctx, reply):
        models, own = list(ctx.received["models"]), reply.update.groups["clusters"]
        j = int(own.keys[0])
        models[j] = models[j] + Params.expand(models[j].layout, own.values[0])
        return replace(ctx, received={**ctx.received, "models": tuple(models)})
