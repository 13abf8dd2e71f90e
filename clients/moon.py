"""MOON: representations are pulled to those of the received model and pushed away from those of the client's last one.

    loss + mu * contrast
    contrast = -log( e^(s(z, z_received) / T) / (e^(s(z, z_received) / T) + e^(s(z, z_previous) / T)) )

Li, He, Song 2021, arXiv:2103.16257, Algorithm 1.  s is the cosine, z the output of the layer `features` (default: the
input of the last layer).  A client keeps its trained model and contrasts with it next time; the first time it
contrasts with the received model, so the contrast has no gradient (in the authors' program: the client's initial
weights).  z_received and z_previous are computed without dropout: once, before the first step, or for each batch, if
training batches are random.
With `projection` a head of two layers lies between the model's body and its last layer, as in the paper:
body -> Linear(h, h) -> ReLU -> Linear(h, projection) -> last layer; z is then the head's output.
Differs from the paper: without `projection` there is no head; the paper's has the width 256.
Equals FedAvg: mu=0.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl import (
    Batch,
    Extended,
    LossOfOutputs,
    ModelOutputs,
    Params,
    Task,
    TrainingInputs,
    TrainingResult,
    Tree,
    checks,
    last_linear,
    register,
)

EPS = 1e-8  # the smallest norm of features that a cosine divides by


def away(received: Tensor, previous: Tensor, temperature: float) -> Tensor:
    """Return (z_previous / |z_previous| - z_received / |z_received|) / T, (B, D), from two (B, D)."""
    return (F.normalize(previous, eps=EPS) - F.normalize(received, eps=EPS)) / temperature


def contrast(z: Tensor, away: Tensor) -> Tensor:
    """Return the contrastive loss of each sample, (B,): log(1 + e^((s(z, z_previous) - s(z, z_received)) / T)).

    Args:
        z: representations, (B, D).
        away: `away` of the other models' representations, (B, D).
    """
    return F.softplus((z * away).sum(1) / torch.linalg.vector_norm(z, dim=1).clamp_min(EPS))


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
class Moon(LossOfOutputs):
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

    def reference_models(self, inputs: TrainingInputs) -> Mapping[str, Params]:
        return {"received": inputs.received["model"], "previous": inputs.state} if self.mu else {}

    def constants(
        self, references: Mapping[str, ModelOutputs], config: Mapping[str, Any], task: Task
    ) -> Mapping[str, Tensor]:
        received, previous = (references[whose].features for whose in ("received", "previous"))
        return {"away": away(received, previous, self.temperature)}

    def sample_losses(
        self, own: ModelOutputs, constants: Mapping[str, Tensor], batch: Batch, config: Mapping[str, Any], task: Task
    ) -> Tensor:
        losses = task.loss(own.outputs, batch)
        return losses + self.mu * contrast(own.features, constants["away"]) if self.mu else losses

    def finish(self, end: TrainingResult) -> tuple[Mapping[str, Tree], Tree]:
        return {"model": end.delta}, end.params
