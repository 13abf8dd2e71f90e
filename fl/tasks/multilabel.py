"""Multi-label classification: any subset of K labels.

    loss = 1/K sum_k -(y_k log p_k + (1 - y_k) log(1 - p_k)),    p = sigmoid(outputs)

    f1_k      2 tp_k / (2 tp_k + fp_k + fn_k), predicted where p > 1/2; 0 if label k is neither present nor predicted
    f1_micro  the same with sum_k tp_k, sum_k fp_k, sum_k fn_k        f1_macro  mean_k f1_k
    map       mean of AP_k = sum_n (R_n - R_{n-1}) P_n over labels that occur; n: distinct scores, highest first

They equal scikit-learn's f1_score and average_precision_score. Counts and scores pool exactly over batches, clients and
workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fl.data.checking import refuse, require_labels
from fl.data.views import Batch
from fl.registry import register
from fl.tasks.supervised import Loss
from fl.tasks.task import Metric, Task


def f1(tp: Tensor, fp: Tensor, fn: Tensor) -> Tensor:
    """Return the F1 score of counts of one shape; 0 where all counts are 0.

    >>> f1(torch.tensor(3), torch.tensor(1), torch.tensor(1)).item()
    0.75
    """
    return 2 * tp / (2 * tp + fp + fn).clamp(min=1)


def average_precision(scores: Tensor, y: Tensor) -> float:
    """Return the average precision of one label.

    Equal scores are one threshold, so the order of rows does not matter.

    Args:
        scores: (N,).
        y: (N,) of 0 and 1, with at least one 1.

    >>> average_precision(torch.tensor([0.9, 0.8, 0.1]), torch.tensor([1, 0, 1]))  # (1 / 1 + 2 / 3) / 2
    0.8333333333333333
    """
    values, which = torch.unique(scores, return_inverse=True)  # ascending
    hits = torch.bincount(which, weights=y.double(), minlength=len(values)).flip(0)
    true_positives = hits.cumsum(0)
    predicted = torch.bincount(which, minlength=len(values)).flip(0).cumsum(0)
    return float((hits / true_positives[-1] * true_positives / predicted).sum())


class F1(Metric):
    """F1 score over all labels.

    Args:
        average: `micro` pools the counts of all labels; `macro` is the mean of the labels' scores.
    """

    batched: ClassVar[bool] = True

    def __init__(self, average: Literal["micro", "macro"]):
        self.average = average

    def measure(self, outputs: Tensor, batch: Batch, segments: Tensor, count: int) -> Any:
        predicted, present = outputs > 0, batch["y"] > 0.5
        zeros = torch.zeros(count, outputs.shape[1], dtype=torch.float64)
        kinds = (predicted & present, predicted & ~present, ~predicted & present)
        rows = torch.bincount(segments, minlength=count).double()
        return *(zeros.index_add(0, segments, kind.double()) for kind in kinds), rows

    def finish(self, acc: Any) -> float:
        *counts, rows = acc
        if not rows > 0:
            return float("nan")
        if self.average == "micro":
            counts = [c.sum(-1) for c in counts]
        return float(f1(*counts).mean())


class MeanAveragePrecision(Metric):
    """Mean average precision. It keeps all scores and labels until `finish`. Without positive labels it is NaN."""

    linear: ClassVar[bool] = False

    def measure(self, outputs: Tensor, batch: Batch, segments: Tensor, count: int) -> Any:
        """Return scores and labels, each (count, longest, K); rows beyond a client's samples are NaN."""
        lengths = torch.bincount(segments, minlength=count)
        starts = lengths.cumsum(0) - lengths
        order = torch.argsort(segments, stable=True)
        clients = segments[order]
        at = clients, torch.arange(len(clients)) - starts[clients]
        shape = (count, int(lengths.max()) if count else 0, outputs.shape[1])
        scores, labels = outputs.new_full(shape, torch.nan), outputs.new_full(shape, torch.nan)
        scores[at], labels[at] = outputs[order], batch["y"][order].to(outputs.dtype)
        return scores, labels

    def merge(self, a: Any, b: Any) -> Any:
        joined = tuple(torch.cat(pair, -2) for pair in zip(a, b))
        return _present(joined) if joined[0].ndim == 2 else joined

    def finish(self, acc: Any) -> float:
        scores, labels = _present(acc)
        found = [average_precision(s, y) for s, y in zip(scores.T, labels.T) if (y > 0.5).any()]
        return sum(found) / len(found) if found else float("nan")


def _present(acc: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return scores and labels (n, K) without padding rows."""
    present = ~acc[1].isnan().any(-1)
    return tuple(part[present] for part in acc)


@register("task", "multilabel")
@dataclass(frozen=True, kw_only=True)
class Multilabel(Task):
    """Any subset of K labels: y (B, K) of 0 and 1, integers or floats. Metrics loss, f1_micro, f1_macro and map."""

    def checked(self, arrays: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
        """Take 0 and 1 as integers, floats or bools; refuse everything else."""
        y = require_labels(arrays, where)
        if y is not None and y.ndim == 2:  # num_outputs refuses other shapes
            refuse((y != 0) & (y != 1), y, where, "labels are 0 and 1: present or not")
        return dict(arrays)

    def num_outputs(self, arrays: Mapping[str, np.ndarray]) -> int:
        y = arrays["y"]
        if y.ndim != 2:
            raise ValueError(
                f"'y' {y.dtype} {y.shape} is not (rows, labels) of 0 and 1; use 'classification' for one class per row"
            )
        return y.shape[1]

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs, batch["y"].to(outputs.dtype), reduction="none").mean(-1)

    def metrics(self) -> Mapping[str, Metric]:
        return {"loss": Loss(self), "f1_micro": F1("micro"), "f1_macro": F1("macro"), "map": MeanAveragePrecision()}
