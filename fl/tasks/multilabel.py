"""Any number of K labels for a sample.    loss = 1/K sum_k -(y_k log p_k + (1 - y_k) log(1 - p_k)),    p = sigmoid(outputs)

    f1_k      2 tp_k / (2 tp_k + fp_k + fn_k), 0 if nobody has label k or is said to; predicted where p > 1/2
    f1_micro  the same of sum_k tp_k, ...        f1_macro  mean_k f1_k
    map       mean over labels that any sample has of AP_k = sum_n (R_n - R_{n-1}) P_n, over distinct scores, highest first

As scikit-learn's f1_score and average_precision_score; counts and scores pool exactly over batches, clients and workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fl.registry import register
from fl.tasks.supervised import Loss
from fl.tasks.task import Metric, Task


def f1(tp: Tensor, fp: Tensor, fn: Tensor) -> Tensor:
    """Of counts (...) of one shape; 0 where all are 0."""
    return 2 * tp / (2 * tp + fp + fn).clamp(min=1)


def average_precision(scores: Tensor, y: Tensor) -> float:
    """Of one label: scores (N,), y (N,) 0 or 1, at least one 1. Equal scores are one threshold, so that the order of rows is nothing."""
    values, which = torch.unique(scores, return_inverse=True)  # ascending
    hits = torch.bincount(which, weights=y.double(), minlength=len(values)).flip(0)
    found = hits.cumsum(0)
    said = torch.bincount(which, minlength=len(values)).flip(0).cumsum(0)
    return float((hits / found[-1] * found / said).sum())


class F1(Metric):
    batched: ClassVar[bool] = True

    def __init__(self, average: Literal["micro", "macro"]):
        self.average = average

    def measure(self, outputs, batch, segments, count):
        said, there = outputs > 0, batch["y"] > 0.5
        zeros = torch.zeros(count, outputs.shape[1], dtype=torch.float64)
        kinds = (said & there, said & ~there, ~said & there)
        rows = torch.bincount(segments, minlength=count).double()
        return *(zeros.index_add(0, segments, kind.double()) for kind in kinds), rows

    def finish(self, acc):
        *counts, rows = acc
        if not rows > 0:
            return float("nan")
        if self.average == "micro":
            counts = [c.sum(-1) for c in counts]
        return float(f1(*counts).mean())


class MeanAveragePrecision(Metric):
    """Keeps all scores and labels until `finish`: memory grows with the samples. Without any positive it is NaN."""

    linear: ClassVar[bool] = False

    def measure(self, outputs, batch, segments, count):
        """Scores and labels, each (count, longest, K), rows that a client lacks NaN."""
        lengths = torch.bincount(segments, minlength=count)
        starts = lengths.cumsum(0) - lengths
        order = torch.argsort(segments, stable=True)
        mine = segments[order]
        at = mine, torch.arange(len(mine)) - starts[mine]
        shape = (count, int(lengths.max()) if count else 0, outputs.shape[1])
        scores, labels = outputs.new_full(shape, torch.nan), outputs.new_full(shape, torch.nan)
        scores[at], labels[at] = outputs[order], batch["y"][order].to(outputs.dtype)
        return scores, labels

    def merge(self, a, b):
        joined = tuple(torch.cat(pair, -2) for pair in zip(a, b))
        return _present(joined) if joined[0].ndim == 2 else joined

    def finish(self, acc):
        scores, labels = _present(acc)
        found = [average_precision(s, y) for s, y in zip(scores.T, labels.T) if (y > 0.5).any()]
        return sum(found) / len(found) if found else float("nan")


def _present(acc: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Scores and labels (n, K) without the rows that are none."""
    there = ~acc[1].isnan().any(-1)
    return tuple(part[there] for part in acc)


@register("task", "multilabel")
@dataclass(frozen=True, kw_only=True)
class Multilabel(Task):
    """y (B, K) of 0 and 1, whole numbers or not; see the module. Metrics loss, f1_micro, f1_macro and map."""

    def num_outputs(self, arrays):
        y = arrays["y"]
        if y.ndim != 2:
            raise ValueError(
                f"'y' {y.dtype} {y.shape} is not (rows, labels) of 0 and 1; take 'classification' for one class each"
            )
        return y.shape[1]

    def loss(self, outputs, batch):
        return F.binary_cross_entropy_with_logits(outputs, batch["y"].to(outputs.dtype), reduction="none").mean(-1)

    def metrics(self):
        return {"loss": Loss(self), "f1_micro": F1("micro"), "f1_macro": F1("macro"), "map": MeanAveragePrecision()}
