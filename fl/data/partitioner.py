"""Base of partitioners, and the check of their partitions."""

from __future__ import annotations

from typing import ClassVar, Protocol

from fl.data.dataset import Dataset
from fl.data.partition import Partition


class Partitioner(Protocol):
    """A rule that distributes rows: a frozen dataclass registered under "partition".

    Attributes:
        overlaps: Whether clients may share rows. If not, a row that is given twice stops the run before round 0.
        leaves_rows: Whether rows may be left out. If not, a row that belongs to no client stops the run.
        keeps_held: Whether `split` makes test rows of the rows that owners only test on (`Dataset.held`). If not, it
            gets the data set without them.
    """

    overlaps: ClassVar[bool] = False
    leaves_rows: ClassVar[bool] = False
    keeps_held: ClassVar[bool] = False

    def split(self, dataset: Dataset) -> Partition:
        """Distribute the training rows among the clients."""
        raise NotImplementedError


def split_checked(partitioner: Partitioner, dataset: Dataset) -> Partition:
    """Distribute the training rows and check the result: types, bounds, rows given twice, rows left out.

    A user's partitioner need not inherit from `Partitioner`.
    """
    partition = partitioner.split(dataset)
    if not isinstance(partition, Partition):
        raise ValueError(
            f"{type(partitioner).__name__}.split returned {type(partition).__name__}, not a Partition; "
            "return fl.data.partition.Partition(indices, offsets)"
        )
    allowed = {name: getattr(partitioner, name, False) for name in ("overlaps", "leaves_rows")}
    partition.check(len(dataset), **allowed)
    return partition
