"""Classification and regression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from fl.data.views import Batch
from fl.registry import register
from fl.tasks.task import MeanMetric, Metric, Task


class Loss(MeanMetric):
    """Mean loss of a task."""

    def __init__(self, task: Task):
        self.task = task

    def values(self, outputs: Tensor, batch: Batch) -> Tensor:
        return self.task.loss(outputs, batch)


class Accuracy(MeanMetric):
    """Share of samples whose class has the highest output."""

    def values(self, outputs: Tensor, batch: Batch) -> Tensor:
        return outputs.argmax(-1) == batch["y"]


class SquaredError(MeanMetric):
    """Squared error, a mean over samples and the K outputs."""

    def values(self, outputs: Tensor, batch: Batch) -> Tensor:
        y = batch["y"].view(outputs.shape[0], -1)
        return (outputs.view_as(y) - y).square().mean(-1)


@register("task", "classification")
@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """One of max(y) + 1 classes; softmax cross-entropy -log p_y. Metrics loss (nats) and accuracy."""

    kernel: ClassVar[str] = "cross_entropy"

    def num_outputs(self, arrays: Mapping[str, np.ndarray]) -> int:
        if arrays["y"].ndim != 1:
            raise ValueError(
                f"'y' {arrays['y'].shape} is not one class per row; use 'language_modelling' or 'multilabel'"
            )
        return int(arrays["y"].max()) + 1

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(outputs, batch["y"], reduction="none")

    def metrics(self) -> Mapping[str, Metric]:
        return {"loss": Loss(self), "accuracy": Accuracy()}


@register("task", "regression")
@dataclass(frozen=True, kw_only=True)
class Regression(Task):
    """Real targets y (B, K) or (B,); loss 1/2 |output - y|^2, a sum over K. Metrics loss, mse = |output - y|^2 / K."""

    kernel: ClassVar[str] = "squared_error"

    def num_outputs(self, arrays: Mapping[str, np.ndarray]) -> int:
        return 1 if arrays["y"].ndim == 1 else arrays["y"].shape[1]

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        y = batch["y"].view(outputs.shape[0], -1)
        return 0.5 * (outputs.view_as(y) - y).square().sum(-1)

    def metrics(self) -> Mapping[str, Metric]:
        return {"loss": Loss(self), "mse": SquaredError()}
