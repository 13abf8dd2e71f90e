"""Shifts: changes of the clients' training rows after partitioning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Protocol

import numpy as np

from fl.data.dataset import Dataset
from fl.data.partition import Partition


class Shift(Protocol):
    """A change of clients' rows: a frozen dataclass registered under "shift". `changes` names the changed arrays."""

    changes: ClassVar[tuple[str, ...]] = ("x",)

    def apply(self, dataset: Dataset, partition: Partition) -> Dataset:
        """Return the data set with changed training rows."""
        raise NotImplementedError


def map_features(dataset: Dataset, partition: Partition, change: Callable[[np.ndarray, slice], np.ndarray]) -> Dataset:
    """Change the features of all rows that belong to clients.

    Args:
        dataset: The data set.
        partition: The rows of the clients.
        change: Called as change(x, at) with the float32 features of the rows partition.indices[at], 4096 at a time.
            Its result is rounded and clipped to the range of an integer dtype.
    """
    x = dataset.train["x"]
    changed, kind = x.copy(), x.dtype
    for start in range(0, len(partition.indices), 4096):
        at = slice(start, start + 4096)
        new = change(x[partition.indices[at]].astype(np.float32), at)
        if kind.kind in "iu":
            new = np.clip(np.rint(new), np.iinfo(kind).min, np.iinfo(kind).max)
        changed[partition.indices[at]] = new
    return replace(dataset, train={**dataset.train, "x": changed})
