"""MOON: representations are pulled to those of the received model and pushed away from those of the client's last one.

    loss + mu * contrast
    contrast = -log( e^(s(z, z_received) / T) / (e^(s(z, z_received) / T) + e^(s(z, z_previous) / T)) )

Li, He, Song 2021, arXiv:2103.16257, Algorithm 1.  s is the cosine, z the output of the layer `features` (default: the
input of the last layer).  A client keeps its trained model and contrasts with it next time; the first time it
contrasts with the received model, so the contrast has no gradient (in the authors' program: the client's initial
weights).  z_received and z_previous are computed without dropout: once a round, or, if training batches are
augmented, for each batch as the model sees it.
With `projection` a head of two layers lies between the model's body and its last layer, as in the paper:
body -> Linear(h, h) -> ReLU -> Linear(h, projection) -> last layer; z is then the head's output.
Differs from the paper: without `projection` there is no head; the paper's has the width 256.
Loop only: a client trains on arrays of its own, the representations of its samples.
Equals FedAvg: mu=0.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl import (
    Batch,
    ClientContext,
    Extended,
    LocalTraining,
    Reply,
    StepContext,
    Task,
    TrainingInputs,
    TrainingResult,
    Tree,
    View,
    checks,
    last_linear,
    register,
)

from .measure import check_graphs, features_of, representations


def contrast(z: Tensor, received: Tensor, previous: Tensor, temperature: float) -> Tensor:
    """Return the contrastive loss of each sample, (B,), from three (B, D)."""
    cosines = [F.cosine_similarity(z, other) for other in (received, previous)]
    return -F.log_softmax(torch.stack(cosines, 1) / temperature, 1)[:, 0]


class WithProjection(Extended):
    """A model whose features pass through the part `projection` before its last layer."""

    def forward(self, x: Tensor) -> Any:
        return self.with_layer(self.last, lambda last, features: last(self.added(features)), x)


def with_projection(module: nn.Module, width: int) -> WithProjection:
    """Return the model with a projection head of `width` outputs; the last layer is a new one if they do not fit it."""
    name, last = last_linear(module)
    features = last.in_features
    head = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, width))
    fits = width == features
    replaced = {} if fits else {name: nn.Linear(width, last.out_features, bias=last.bias is not None)}
    return WithProjection(module, "projection", head, replaced)


@register("client", "moon")
@dataclass(frozen=True, kw_only=True)
class Moon(LocalTraining):
    """Local training with a model-contrastive loss.

    Args:
        mu: weight of the contrastive loss, at least 0. 0 is FedAvg.
        temperature: temperature T of the contrastive loss, positive.
        features: name of the layer whose outputs are the representations. Default: the inputs of the last layer.
        projection: width of the projection head's outputs, positive; the paper takes 256. Default: no such head.
    """

    mu: float = 1.0
    temperature: float = 0.5
    features: str | None = None
    projection: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.not_negative(mu=self.mu, hint="0 is plain local training")
        checks.positive(temperature=self.temperature, projection=self.projection)
        if self.mu == 0:
            logging.getLogger(__name__).warning("mu=0: this is fedavg")

    def extend(self, module: nn.Module, sample_shape: tuple[int, ...], outputs: int) -> nn.Module:
        return module if self.projection is None else with_projection(module, self.projection)

    def first_state(self, inputs: TrainingInputs) -> Tree:
        return inputs.received["model"]

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        if not self.mu or not len(ctx.train):
            return super().work(name, ctx, carry)
        if ctx.random_batches:  # the objective makes the reference passes
            check_graphs(ctx)
            return super().work(name, ctx, carry)
        models = {"received": ctx.received["model"], "previous": self.inputs(ctx).state}
        found = {whose: representations(ctx, model, self.features) for whose, model in models.items()}
        train = View({**ctx.train.take(), **found}, np.arange(len(ctx.train)))
        return super().work(name, replace(ctx, train=train), carry)

    def objective(self, net: Callable[[Tensor], Tensor], batch: Batch, at: StepContext, task: Task) -> Tensor:
        if not self.mu:
            return task.loss(net(batch["x"]), batch)
        assert isinstance(net, nn.Module)  # trained in the loop
        with features_of(net, self.features) as recorded:
            outputs = net(batch["x"])
            if "received" not in batch:
                for model in (at.received["model"], at.state):
                    at.under(model, batch["x"])
        z, *others = (features.flatten(1) for _, features in recorded)
        received, previous = others or (batch["received"], batch["previous"])
        return task.loss(outputs, batch) + self.mu * contrast(z, received, previous, self.temperature)

    def finish(self, end: TrainingResult) -> tuple[Mapping[str, Tree], Tree]:
        return {"model": end.delta}, end.params
