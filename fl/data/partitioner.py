"""Bases of partitioners, of rows and of columns, and the check of their partitions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, Protocol

import numpy as np

from fl.data.dataset import Dataset
from fl.data.partition import Partition


class Partitioner(Protocol):
    """A rule that distributes rows: a frozen dataclass registered under "partition".

    Attributes:
        overlaps: Whether clients may share rows. If not, a row that is given twice stops the run before round 0.
        leaves_rows: Whether rows may be left out. If not, a row that belongs to no client stops the run.
        keeps_held: Whether `split` makes validation and test rows of the rows that the data keep for this
            (`Dataset.held`). If not, it gets the data set without them.
        axis: What is distributed: "rows", or "columns" (`ColumnPartitioner`).
    """

    overlaps: ClassVar[bool] = False
    leaves_rows: ClassVar[bool] = False
    keeps_held: ClassVar[bool] = False
    axis: ClassVar[Literal["rows", "columns"]] = "rows"

    def split(self, dataset: Dataset) -> Partition:
        """Distribute the training rows among the clients."""
        raise NotImplementedError


class ColumnPartitioner(Partitioner):
    """A rule that distributes columns, for vertical federated learning: all parties hold all rows.

    Party 0 is the active party: it is the server, and only it has the labels. Parties 1, 2, ... are the clients
    0, 1, ... . The strategy must be one for columns (`Strategy.axis`).
    """

    overlaps: ClassVar[bool] = True
    axis: ClassVar[Literal["rows", "columns"]] = "columns"

    @property
    def sample_axis(self) -> int:
        """Axis of a sample along which columns are counted, negative; -1: features of a vector, or pixel columns."""
        return -1

    def party_columns(self, dataset: Dataset) -> Sequence[np.ndarray]:
        """Return the columns of each party, the active party first, as int64 arrays. They must be disjoint."""
        raise NotImplementedError

    def split(self, dataset: Dataset) -> Partition:
        """Give all rows to each client, in the same order."""
        clients, rows = len(self.party_columns(dataset)) - 1, len(dataset)
        return Partition(np.tile(np.arange(rows), clients), np.arange(clients + 1) * rows)


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
