"""Labels: which training rows of the clients keep their labels.

    a client's slice:   | labelled | unlabelled | val | test |

Labelled rows are the client's view `train`, so a method that knows nothing of unlabelled rows trains on the labelled
ones. The view `unlabelled` has no array "y". Workers never get the labels of these rows: `without_labels` replaces them
by -1, or by NaN in real numbers. Held-out rows keep their labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from fl.data.dataset import Dataset
from fl.data.grouping import group_by
from fl.data.partition import Partition, owners

NO_LABEL = -1


class Labels(Protocol):
    """A choice of the rows that keep their labels: a frozen dataclass registered under "labels".

    Attributes:
        to_server: Whether rows with labels leave the clients and become training rows of the server.
        in_data: Whether the data say which rows have no label (y = -1). Such rows are never held out for evaluation.
    """

    to_server: ClassVar[bool] = False
    in_data: ClassVar[bool] = False

    def keep(self, dataset: Dataset, partition: Partition) -> np.ndarray:
        """Return (R,) bool: which of `partition.indices` keep their labels. Held-out rows do not matter."""
        raise NotImplementedError


def chosen(labels: Labels, dataset: Dataset, partition: Partition) -> np.ndarray:
    """Return what `labels.keep` returns, and check that it is (R,) bool."""
    found = labels.keep(dataset, partition)
    if not isinstance(found, np.ndarray) or found.dtype != bool or found.shape != partition.indices.shape:
        shown = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
        raise ValueError(
            f"{type(labels).__name__}.keep returned {shown}, not one bool for each of the "
            f"{len(partition.indices)} rows of clients"
        )
    return found


def training_positions(partition: Partition) -> np.ndarray:
    """Return the positions in `partition.indices` of the training rows of all clients."""
    starts, sizes = partition.train_slices()
    before = np.cumsum(sizes) - sizes
    return np.arange(sizes.sum()) + np.repeat(starts - before, sizes)


def with_labelled(partition: Partition, labelled: np.ndarray) -> Partition:
    """Return the partition whose training rows with a False in `labelled` (R,) have no labels.

    >>> partition = Partition(np.array([7, 8, 9]), np.array([0, 3]), val=np.array([1]))
    >>> hidden = with_labelled(partition, np.array([False, True, False]))
    >>> hidden.indices.tolist(), hidden.view_rows(0, "unlabelled").tolist()
    ([8, 7, 9], [7])
    """
    owner, train = owners(partition), training_positions(partition)
    place = np.full(len(owner), 2)  # within the client: with a label, without, held out
    place[train] = ~labelled[train]
    order, _ = group_by(3 * owner + place, 3 * partition.num_clients)
    counts = np.bincount(owner[place == 1], minlength=partition.num_clients)
    return replace(partition, indices=partition.indices[order], unlabelled=counts)


def hide(labels: Labels, dataset: Dataset, partition: Partition) -> Partition:
    """Return the partition with the rows that lose their labels in the view `unlabelled`.

    Raises:
        ValueError: a row that is held out for evaluation has no label, or no row keeps one.
    """
    found = chosen(labels, dataset, partition)
    if getattr(labels, "in_data", False):  # a user's class need not inherit from `Labels`
        held = partition.rows_of("val", "test")
        without = held[has_no_label(dataset.labels[held])]
        if len(without):
            raise ValueError(
                f"row {without[0]} is held out for evaluation and has no label ({len(without)} such rows); "
                "leave these rows out"
            )
    hidden = with_labelled(partition, found)
    if not hidden.train_slices()[1].any():
        raise ValueError("no training row keeps its label")
    return hidden


def moved_to_server(dataset: Dataset, partition: Partition) -> tuple[Dataset, Partition]:
    """Move the clients' rows with labels to the server's own training rows. The clients keep the other rows."""
    rows = np.sort(partition.rows_of("train"))
    moved = {name: array[rows] for name, array in dataset.train.items()}
    own = dataset.server
    if own is not None and set(own) != set(moved):
        raise ValueError(f"the server's own rows have {sorted(own)}, and training rows have {sorted(moved)}")
    server = moved if own is None else {name: np.concatenate([own[name], moved[name]]) for name in own}
    sizes = np.diff(partition.offsets) - partition.train_slices()[1]
    kept = np.delete(partition.indices, training_positions(partition))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return replace(dataset, server=server), replace(partition, indices=kept, offsets=offsets)


def has_no_label(y: np.ndarray) -> np.ndarray:
    """Return (n,) bool: the rows of `y` (n, ...) whose entries are all -1, or all NaN in real numbers.

    >>> has_no_label(np.array([0, -1, 2])).tolist(), has_no_label(np.array([0.5, np.nan])).tolist()
    ([False, True, False], [False, True])
    """
    missing = np.isnan(y) if y.dtype.kind == "f" else y == NO_LABEL
    return missing.all(axis=tuple(range(1, y.ndim)))


def without_labels(y: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return a copy of `y` (N, ...) with -1, or NaN in real numbers, in some `rows`.

    >>> without_labels(np.array([3, 1, 2]), np.array([0, 2])).tolist()
    [-1, 1, -1]
    """
    copied = np.array(y)
    copied[rows] = np.nan if y.dtype.kind == "f" else NO_LABEL
    return copied


def unlabelled_rows(dataset: Dataset, partitions: Sequence[Partition]) -> np.ndarray:
    """Return the rows, ascending, that are unlabelled in the partitions of all periods.

    Raises:
        ValueError: a row is unlabelled at one place and used with its label at another.
    """
    parts = [partition for partition in partitions if partition.unlabelled.any()]
    hidden = np.zeros(len(dataset), bool)
    for partition in parts:
        hidden[partition.rows_of("unlabelled")] = True
    if parts:
        used = np.concatenate([partition.rows_of("train", "val", "test") for partition in partitions])
        both = used[hidden[used]]
        if len(both):
            raise ValueError(
                f"row {both.min()} is unlabelled at one client and used with its label at another, or in another "
                "period; use a partition or a stream that gives each row once"
            )
    return np.flatnonzero(hidden)


def tensors_for_workers(dataset: Dataset, partitions: Sequence[Partition]) -> Mapping[str, Tensor]:
    """Return the training rows as workers get them: `y` of rows without labels is -1, or NaN in real numbers."""
    arrays, rows = dataset.training_tensors(), unlabelled_rows(dataset, partitions)
    if not len(rows) or "y" not in arrays:
        return arrays
    return {**arrays, "y": torch.from_numpy(without_labels(dataset.train["y"], rows))}
