"""IFCA's clients: train the model that fits best.

    j = argmin_j mean training loss of model_j;    send (j, w - model_j)

Ghosh, Chung, Yin, Ramchandran 2020, arXiv:2006.04088, Algorithm 1.  Among equal losses the first wins.  A client
predicts with the model that it would choose now; a client without training data (and the server) with model 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fl import ClientContext, LocalTraining, Params, Reply, Table, TrainingInputs, TrainingResult, Tree, register

from .measure import mean_loss


@register("client", "ifca")
@dataclass(frozen=True, kw_only=True)
class IFCA(LocalTraining):
    """Local training of the best of several models."""

    sends: ClassVar[tuple[str, ...]] = ("clusters",)
    receives: ClassVar[tuple[str, ...]] = ("models",)

    def prepare(self, ctx: ClientContext, inputs: TrainingInputs) -> Tree:
        """Return the index of the received model that fits the client's training data best, and this model."""
        models = ctx.received["models"]
        j = min(range(len(models)), key=lambda j: mean_loss(ctx, models[j])) if len(models) > 1 else 0
        return {"index": torch.tensor(j), "model": models[j]}

    def start(self, inputs: TrainingInputs) -> Params:
        return inputs.prepared["model"]

    def finish(self, end: TrainingResult) -> tuple[Mapping[str, Tree], Tree]:
        key, change = end.prepared["index"], end.delta.compact()
        count = torch.as_tensor(end.num_examples)
        return {"clusters": Table(key[..., None], change[..., None, :], count[..., None])}, None

    def context_after_training(self, ctx: ClientContext, reply: Reply) -> ClientContext:
        models, chosen = list(ctx.received["models"]), reply.update.groups["clusters"]
        j = int(chosen.keys[0])
        models[j] = models[j] + Params.expand(models[j].layout, chosen.values[0])
        return replace(ctx, received={**ctx.received, "models": tuple(models)})
