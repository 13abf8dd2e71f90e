"""Open-world classification: some classes have labels in training, the others are only clustered.

    seen_accuracy     share of the samples of seen classes whose class has the highest output
    unseen_accuracy   share of the samples of unseen classes that are right under the best renaming of predicted classes
    unseen_nmi        normalised mutual information of predicted and true classes, over samples of unseen classes
    all_accuracy      as `unseen_accuracy`, one renaming for all samples
    unseen_gap        | accuracy of locally unseen classes - accuracy of globally unseen ones |, renamed as in
                      `unseen_accuracy`

A class is globally unseen if all clients have rows of it, and locally unseen if only some have. The metrics are made
from tables of predicted and true classes, so they pool exactly. Zhang, Ma, Guo, Xu 2023, arXiv:2305.00771.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fl.checks import positive
from fl.data.views import Batch
from fl.registry import register
from fl.tasks.supervised import Classification
from fl.tasks.task import Metric
from fl.tensors.clustering import matched, nmi


class OfTable(Metric):
    """A function of the table of predicted and true classes, float64 (C, C).

    Args:
        value: the function.
    """

    batched: ClassVar[bool] = True

    def __init__(self, value: Callable[[Tensor], float]):
        self.value = value

    def measure(self, outputs: Tensor, batch: Batch, segments: Tensor, count: int) -> Any:
        size = outputs.shape[-1]
        cells = (segments * size + outputs.argmax(-1)) * size + batch["y"]
        return (torch.bincount(cells, minlength=count * size * size).view(count, size, size).double(),)

    def finish(self, acc: Any) -> float:
        return self.value(acc[0])


def share(correct: Tensor, table: Tensor) -> float:
    """Return the share of correct samples; NaN if the table has none."""
    return float(correct.sum() / table.sum()) if table.sum() > 0 else float("nan")


def matched_share(table: Tensor) -> float:
    """Return the share of correct samples under the best renaming of predicted classes; NaN if the table has none."""
    return share(matched(table), table)


@register("task", "open_world")
@dataclass(frozen=True, kw_only=True)
class OpenWorld(Classification):
    """Classification with metrics for classes without labels.

    Args:
        seen: number of seen classes, positive: those with the lowest numbers; or the classes, as a list. Set it as in
            `labels: {name: open_world, seen: ...}`.
        globally_unseen: the unseen classes that all clients have, as a list. Empty: no metric `unseen_gap`.
    """

    seen: int | tuple[int, ...] = 1
    globally_unseen: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.seen, int):
            positive(seen=self.seen)
        if both := sorted(set(self.globally_unseen) & set(self._seen)):
            raise ValueError(f"globally_unseen: {both[0]} is a seen class; leave it out")

    @property
    def _seen(self) -> list[int]:
        return list(range(self.seen)) if isinstance(self.seen, int) else list(self.seen)

    def num_outputs(self, arrays: Mapping[str, np.ndarray]) -> int:
        outputs = super().num_outputs(arrays)
        if absent := [c for c in (*self._seen, *self.globally_unseen) if not 0 <= c < outputs]:
            raise ValueError(f"seen, globally_unseen: {absent[0]} is not one of the classes 0..{outputs - 1}")
        return outputs

    def metrics(self) -> Mapping[str, Metric]:
        found = {
            "seen_accuracy": OfTable(self._seen_accuracy),
            "unseen_accuracy": OfTable(self._unseen_accuracy),
            "unseen_nmi": OfTable(self._unseen_nmi),
            "all_accuracy": OfTable(matched_share),
        }
        gap = {"unseen_gap": OfTable(self._gap)} if self.globally_unseen else {}
        return {**super().metrics(), **found, **gap}

    def _unseen(self, table: Tensor) -> Tensor:
        """The table without the samples of seen classes."""
        kept = table.clone()
        kept[:, self._seen] = 0
        return kept

    def _seen_accuracy(self, table: Tensor) -> float:
        return share(table.diagonal()[self._seen], table[:, self._seen])

    def _unseen_accuracy(self, table: Tensor) -> float:
        return matched_share(self._unseen(table))

    def _unseen_nmi(self, table: Tensor) -> float:
        return nmi(self._unseen(table))

    def _gap(self, table: Tensor) -> float:
        unseen = self._unseen(table)
        correct, common = matched(unseen), list(self.globally_unseen)
        local = [c for c in range(len(table)) if c not in {*common, *self._seen}]
        return abs(share(correct[local], unseen[:, local]) - share(correct[common], unseen[:, common]))
