"""What is learnt: an objective per sample, and metrics that pool exactly over batches, clients and workers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fl.data.views import Batch
from fl.method.reduction import Meta, Reduction
from fl.tensors.trees import row

# what tells the best round: the first that is measured, never test rows
SELECT = ("val/accuracy", "val/loss", "train/loss")


def minimised(metric: str) -> bool:
    """Whether less of a metric is better, told by its name: val/loss, clients/mse_worst10; of any its std and gini."""
    metric = re.sub("_(mean|weighted|worst10)$", "", metric)
    return metric.endswith(("_std", "_gini", "loss", "mse", "perplexity"))


class Metric(Reduction):
    """A quantity of outputs and batch that pools exactly: `measure` a batch, `merge`, `finish` to a number."""

    linear: ClassVar[bool] = True

    def measure(self, outputs: Tensor, batch: Batch, segments: Tensor, count: int) -> Any:
        """Per-client accumulators, each leaf (count, ...); `segments` (B,) int64 says whose a sample is."""
        raise NotImplementedError

    def lift(self, value: Any, meta: Meta) -> Any:
        return value

    def merge(self, a: Any, b: Any) -> Any:
        return tuple(x + y for x, y in zip(a, b))

    def finish(self, acc: Any) -> float:
        raise NotImplementedError

    def each(self, accs: Any, count: int) -> np.ndarray:
        """(count,): the metric of each client, NaN where it has no samples."""
        return np.array([self.finish(row(accs, i)) for i in range(count)])


class MeanMetric(Metric):
    """A mean over samples of `values(outputs, batch)` (B,), summed in float64."""

    batched: ClassVar[bool] = True

    def values(self, outputs: Tensor, batch: Batch) -> Tensor:
        raise NotImplementedError

    def measure(self, outputs, batch, segments, count):
        values = self.values(outputs, batch).double()
        sums = torch.zeros(count, dtype=torch.float64).index_add_(0, segments, values)
        return sums, torch.bincount(segments, minlength=count).double()

    def finish(self, acc) -> float:
        total, count = acc
        return float(total / count) if count > 0 else float("nan")

    def each(self, accs, count):
        total, samples = accs
        return torch.where(samples > 0, total / samples, torch.nan).cpu().numpy()


class Task:
    """Base of tasks: `outputs` of the model from the shape of the data, `loss` per sample, `metrics` by name."""

    # the loss is softmax cross-entropy over the last axis, or half the squared error: what hand-written kernels know
    kernel: ClassVar[str | None] = None

    def num_outputs(self, arrays: Mapping[str, np.ndarray]) -> int:
        raise NotImplementedError

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """(B,)"""
        raise NotImplementedError

    def metrics(self) -> Mapping[str, Metric]:
        raise NotImplementedError
