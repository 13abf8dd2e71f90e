"""One-class learning: a client has samples of its own class only, and tells them from all others.

    loss = mean_d z_d^2        z: the outputs for a sample, which training brings near 0
    score = -loss              or the output itself, if a client predicts one number for a sample
    auroc                      of the scores, y = 1 (own class) against the rest, for each client

The outputs may be features minus a centre, or what an autoencoder cannot reconstruct (`model: autoencoder`). The scores
of two clients are not comparable, so `auroc` is never pooled: reports have its mean and its worst clients. Rows get
y = 1 or 0 by `shift: own_or_other`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from fl.checks import at_least
from fl.data.checking import require_labels, whole_numbers
from fl.data.views import Batch
from fl.registry import register
from fl.tasks.auroc import auroc
from fl.tasks.task import ClientMetric, Metric, Task


def scores(outputs: Tensor) -> Tensor:
    """Return one score per sample, (B,), larger for the own class.

    >>> import torch
    >>> scores(torch.tensor([[1.0, 3.0], [0.0, 0.0]])).tolist(), scores(torch.tensor([0.5])).tolist()
    ([-5.0, -0.0], [0.5])
    """
    return outputs if outputs.ndim == 1 else -outputs.flatten(1).square().mean(1)


class AUROC(ClientMetric):
    """Area under the ROC curve of one client: samples with y = 1 against the others. NaN if it has one kind only."""

    def measure(self, outputs: Tensor, batch: Batch, segments: Tensor, count: int) -> Any:
        return super().measure(scores(outputs), batch, segments, count)

    def value(self, outputs: Tensor, batch: Batch) -> float:
        return auroc(outputs, batch["y"] == 1)


def require_one_class(task: Task, method: str) -> None:
    """Refuse all tasks but one-class learning, for a method that predicts one score per sample.

    >>> from fl.tasks.supervised import Classification
    >>> require_one_class(Classification(), "client Flow")
    Traceback (most recent call last):
    ValueError: client Flow predicts one score per sample, which Classification does not take; use task: one_class
    """
    if not isinstance(task, OneClass):
        name = type(task).__name__
        raise ValueError(f"{method} predicts one score per sample, which {name} does not take; use task: one_class")


@register("task", "one_class")
@dataclass(frozen=True, kw_only=True)
class OneClass(Task):
    """One-class learning. The metric auroc is defined for each client.

    Args:
        features: number of outputs of the model, at least 2.
    """

    features: int = 32

    def __post_init__(self) -> None:
        at_least(2, features=self.features)

    def checked(self, arrays: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
        """Take whole numbers as classes."""
        y = require_labels(arrays, where)
        if y is None:
            return dict(arrays)
        return {**arrays, "y": whole_numbers(y, where, "classes are whole numbers; round them")}

    def num_outputs(self, arrays: Mapping[str, np.ndarray]) -> int:
        """Return the number of features."""
        return self.features

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return -scores(outputs)

    def metrics(self) -> Mapping[str, Metric]:
        return {"auroc": AUROC()}
