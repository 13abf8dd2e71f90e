"""Test labels for one-class clients: y = 1 if a test row has the client's own class, else 0.

The own class is the most frequent class of the client's training rows, the lowest one of several. Labels of training
and validation rows stay, and so does the server's test set. `task: one_class` measures how well a client tells the two
apart. Use it with `partition: one_class`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fl.data.dataset import Dataset
from fl.data.grouping import class_codes
from fl.data.partition import Partition, owners
from fl.data.shift import Shift
from fl.registry import register


def own_classes(labels: np.ndarray, partition: Partition) -> np.ndarray:
    """Return (N,): the most frequent class of each client's training rows; the lowest class without such rows."""
    classes, codes = class_codes(labels)
    rows, counts = partition.views_rows(np.arange(partition.num_clients), "train")
    cells = np.repeat(np.arange(partition.num_clients), counts) * len(classes) + codes[rows]
    table = np.bincount(cells, minlength=partition.num_clients * len(classes))
    return classes[table.reshape(partition.num_clients, -1).argmax(1)]


@register("shift", "own_or_other")
@dataclass(frozen=True, kw_only=True)
class OwnOrOther(Shift):
    """Label 1 for test rows of the client's own class, 0 for its other test rows."""

    changes: ClassVar[tuple[str, ...]] = ("y",)

    def apply(self, dataset: Dataset, partition: Partition) -> Dataset:
        own = own_classes(dataset.labels, partition)[owners(partition)]
        ends = partition.offsets[1:][owners(partition)]
        is_test = np.arange(len(partition.indices)) >= ends - partition.test[owners(partition)]
        rows = partition.indices[is_test]
        y = dataset.labels.copy()
        y[rows] = dataset.labels[rows] == own[is_test]
        return replace(dataset, train={**dataset.train, "y": y})
