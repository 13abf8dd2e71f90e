"""Classification and regression."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from fl.data.checking import refuse, require_finite, require_labels, whole_numbers
from fl.data.views import Batch
from fl.registry import register
from fl.tasks.task import MeanMetric, Metric, Task

log = logging.getLogger(__name__)

FEW = 100  # up to this number of outputs, unused ones cause no warning
# Labels are refused if they need more than MANY outputs and fewer than one output in RARE occurs in y. Such labels are
# hashes or numbers of persons.
MANY, RARE = 1_000_000, 1000


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


_NEGATIVE = (
    "classes are numbered from 0; leave these rows out, or number the classes (`labels: given`: -1 has no label)"
)


def _require_dense(y: np.ndarray, where: str) -> None:
    """Refuse class ids far above the number of classes; log a warning where they are merely well above it."""
    outputs = int(y.max()) + 1
    if outputs <= FEW:
        return
    classes = np.count_nonzero(np.bincount(y)) if outputs <= MANY else len(np.unique(y))
    if outputs > MANY and outputs > RARE * classes:
        raise ValueError(
            f"{where} y has {classes} different values up to {outputs - 1} (row {int(y.argmax())}), which would need "
            f"{outputs} outputs; number them from 0, e.g. with numpy.unique(y, return_inverse=True)[1]"
        )
    if where == "train" and outputs > 10 * classes:
        log.warning("data: y has %d classes, but the model gets %d outputs; number them from 0", classes, outputs)


@register("task", "classification")
@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """One of max(y) + 1 classes; softmax cross-entropy -log p_y. Metrics loss (nats) and accuracy."""

    kernel: ClassVar[str] = "cross_entropy"

    def checked(self, arrays: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
        """Take whole numbers from 0, also as floats, bools or (N, 1); refuse other values and ids that leave gaps."""
        y = require_labels(arrays, where)
        if y is None:
            return dict(arrays)
        y = y.reshape(-1) if y.ndim == 2 and y.shape[1] == 1 else y
        if y.ndim != 1:
            return dict(arrays)  # num_outputs refuses the shape
        y = whole_numbers(y, where, "classes are whole numbers; round them, or use task: regression")
        refuse(y < 0, y, where, _NEGATIVE)
        _require_dense(y, where)
        return {**arrays, "y": y}

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
    word_labels: ClassVar[bool] = False

    def checked(self, arrays: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
        """Take numbers, (N,) or (N, K), as float32; refuse NaN and infinities."""
        y = require_labels(arrays, where)
        if y is None:
            return dict(arrays)
        if y.ndim > 2:
            raise ValueError(f"{where} y {y.shape} is not one number or one vector per row; make it (rows, numbers)")
        require_finite(y, f"{where} y")
        return {**arrays, "y": y.astype(np.float32, copy=False)}

    def num_outputs(self, arrays: Mapping[str, np.ndarray]) -> int:
        return 1 if arrays["y"].ndim == 1 else arrays["y"].shape[1]

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        y = batch["y"].view(outputs.shape[0], -1)
        return 0.5 * (outputs.view_as(y) - y).square().sum(-1)

    def metrics(self) -> Mapping[str, Metric]:
        return {"loss": Loss(self), "mse": SquaredError()}
