"""Partitions: the rows of each client, as two arrays for any number of clients.

    indices  |--- client 0 ---|-- client 1 --|------ client 2 ------| ...      client c: offsets[c] .. offsets[c+1]
             |labelled|unlabelled|val|test|         "train": rows with labels, all of them without `labels:`

There is no loop over clients: a million clients take a few array operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from fl.data.grouping import class_codes, group_by, hash_order, rank_in_group
from fl.tensors import random

ViewName = Literal["train", "unlabelled", "val", "test"]


def _no_rows() -> np.ndarray:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class Partition:
    """The rows of each client; all arrays are int64. Fractions are a `ValueError`.

    Args:
        indices: (R,) rows of the data set, client by client.
        offsets: (N + 1,) start of each client's slice in `indices`, and the end of the last one.
        val: (N,) number of validation rows, before the test rows of each slice. Default: none.
        test: (N,) number of test rows at the end of each slice. Default: none.
        unlabelled: (N,) number of training rows without labels, before the validation rows. Default: none.
    """

    indices: np.ndarray
    offsets: np.ndarray
    val: np.ndarray = field(default_factory=_no_rows)
    test: np.ndarray = field(default_factory=_no_rows)
    unlabelled: np.ndarray = field(default_factory=_no_rows)

    def __post_init__(self) -> None:
        for name in ("indices", "offsets", "val", "test", "unlabelled"):
            object.__setattr__(self, name, whole(name, getattr(self, name)))
        for name in ("val", "test", "unlabelled"):
            if not len(getattr(self, name)):
                object.__setattr__(self, name, np.zeros(self.num_clients, np.int64))

    @property
    def num_clients(self) -> int:
        """Number of clients N."""
        return len(self.offsets) - 1

    @property
    def empty_clients(self) -> np.ndarray:
        """Ids of the clients that have no rows."""
        return np.flatnonzero(np.diff(self.offsets) == 0)

    def train_slices(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (starts, sizes), each (N,): client c trains on indices[starts[c] : starts[c] + sizes[c]].

        These are the rows with labels.
        """
        return self.offsets[:-1], np.diff(self.offsets) - self.unlabelled - self.val - self.test

    def view_rows(self, client: int, view: ViewName) -> np.ndarray:
        """Return the rows of the data set in a view of one client.

        >>> partition = Partition(np.array([7, 8, 9]), np.array([0, 1, 3]), val=np.array([0, 1]))
        >>> partition.view_rows(1, "train").tolist(), partition.view_rows(1, "val").tolist()
        ([8], [9])
        """
        if not 0 <= client < self.num_clients:
            raise ValueError(f"client: {client} is not one of 0..{self.num_clients - 1}")
        a, b = self._spans(client, view)
        return self.indices[a:b]

    def views_rows(self, clients: np.ndarray, view: ViewName) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of the data set in a view of several clients, one client after another, and their counts.

        >>> partition = Partition(np.array([7, 8, 9]), np.array([0, 1, 3]), val=np.array([0, 1]))
        >>> rows, counts = partition.views_rows(np.array([1, 0]), "train")
        >>> rows.tolist(), counts.tolist()
        ([8, 7], [1, 1])
        """
        starts, ends = self._spans(clients, view)
        counts = ends - starts
        before = np.cumsum(counts) - counts
        return self.indices[np.arange(counts.sum()) + np.repeat(starts - before, counts)], counts

    def _spans(self, clients: Any, view: str) -> tuple[Any, Any]:
        """Return where a view begins and ends in `indices`, for one client or several."""
        end = self.offsets[clients + 1]
        first_test = end - self.test[clients]
        first_val = first_test - self.val[clients]
        if view == "train":
            return self.offsets[clients], first_val - self.unlabelled[clients]
        if view == "unlabelled":
            return first_val - self.unlabelled[clients], first_val
        if view == "val":
            return first_val, first_test
        if view == "test":
            return first_test, end
        raise ValueError(f"view: {view!r} is not one of {list(get_args(ViewName))}")

    def hold_out(self, val: float, test: float, seed: int, eligible: np.ndarray | None = None) -> Partition:
        """Hold out floor(val n) validation rows and floor(test n) test rows of each client's n rows.

        The rows are drawn in an order that depends on (seed, row) only. At least one row stays for training. If the
        partition already has test rows, they are kept, n counts the other rows, and `test` must be 0. If it has
        validation rows, both must be 0. Call it before `with_labelled`.

        Args:
            val: Fraction of validation rows.
            test: Fraction of test rows.
            seed: Seed of the order.
            eligible: (R,) bool, which of `indices` may be held out; n counts these rows only. Default: all.
        """
        if not (val >= 0 and test >= 0 and val + test < 1):
            raise ValueError(f"val: {val} and test: {test} are not fractions with val + test < 1")
        has_test = bool(self.test.any())
        if has_test and test:
            raise ValueError(f"test: {test} with a partition that has its own test rows; set it to 0")
        if val == test == 0:
            return self
        if self.val.any():
            raise ValueError(
                f"val: {val} and test: {test} with data that say which rows are for validation; set both to 0"
            )
        sizes = np.diff(self.offsets) - self.test
        # two groups per client: its other rows, then its test rows
        groups = np.repeat(np.arange(2 * self.num_clients), np.stack([sizes, self.test], 1).ravel())
        count = 2 * self.num_clients
        if eligible is not None:  # three groups: first the rows that must not be held out
            may = (groups % 2 == 0) & eligible
            sizes = np.bincount(groups[may] // 2, minlength=self.num_clients)
            groups, count = groups // 2 * 3 + np.where(groups % 2, 2, may), 3 * self.num_clients
        shuffled = hash_order(random.hash64(seed, "hold_out", self.indices))
        order = shuffled[group_by(groups[shuffled], count)[0]]
        spare = np.maximum(sizes - 1, 0)
        tests = np.minimum((test * sizes).astype(np.int64), spare)
        vals = np.minimum((val * sizes).astype(np.int64), spare - tests)
        return replace(self, indices=self.indices[order], val=vals, test=self.test if has_test else tests)

    def rows_of(self, *views: ViewName) -> np.ndarray:
        """Return the rows of the data set in some views of all clients."""
        clients = np.arange(self.num_clients)
        return np.concatenate([self.views_rows(clients, view)[0] for view in views])

    def capped(self, labels: np.ndarray, most: int) -> Partition:
        """Keep at most `most` training rows per client and class, the first in order, and all held-out rows."""
        owner, train = owners(self), self._is_train()
        _, codes = class_codes(labels)
        group = owner * (int(codes.max()) + 1) + codes[self.indices]
        kept = ~train | (rank_in_group(group, ~train) < most)  # in each group training rows come first
        offsets = np.concatenate([[0], np.cumsum(np.bincount(owner[kept], minlength=self.num_clients))])
        return replace(self, indices=self.indices[kept], offsets=offsets)

    def pooled(self) -> Partition:
        """Give all training rows to client 0, also those without labels. Held-out rows stay with their clients."""
        held, unlabelled = self.val + self.test, np.zeros_like(self.unlabelled)
        unlabelled[0] = self.unlabelled.sum()
        trained = self.rows_of("train", "unlabelled")
        sizes = np.diff(self.offsets)
        is_held = np.arange(len(self.indices)) >= np.repeat(self.offsets[1:] - held, sizes)
        held[0] += len(trained)
        offsets = np.concatenate([[0], np.cumsum(held)])
        indices = np.concatenate([trained, self.indices[is_held]])
        return replace(self, indices=indices, offsets=offsets, unlabelled=unlabelled)

    def _is_train(self) -> np.ndarray:
        """Return (R,) bool: which of `indices` are training rows with labels."""
        starts, sizes = self.train_slices()
        return np.arange(len(self.indices)) < (starts + sizes)[owners(self)]

    def covers(self, rows: int) -> bool:
        """Return whether each of the rows 0..rows-1 belongs to a client."""
        return bool(np.all(np.bincount(self.indices, minlength=rows)[:rows]))

    def check(self, rows: int, overlaps: bool = False, leaves_rows: bool = True) -> None:
        """Raise a `ValueError` unless the slices are disjoint subsets of the rows 0..rows-1.

        Args:
            rows: Number of rows of the data set.
            overlaps: Whether a row may be given more than once.
            leaves_rows: Whether some rows may belong to no client.
        """
        sizes = np.diff(self.offsets)
        if not len(self.offsets) or self.offsets[0] != 0 or self.offsets[-1] != len(self.indices) or np.any(sizes < 0):
            raise ValueError(f"offsets: not ascending from 0 to {len(self.indices)}, the number of indices")
        if len(self.indices) and not (0 <= self.indices.min() and self.indices.max() < rows):
            raise ValueError(
                f"indices: {self.indices.min()}..{self.indices.max()} exceed the {rows} rows of the data set"
            )
        counts = np.bincount(self.indices, minlength=rows)
        if not overlaps and counts.max(initial=0) > 1:
            row, several = int(counts.argmax()), int(np.count_nonzero(counts > 1))
            raise ValueError(
                f"indices: row {row} is given {counts[row]} times; clients must be disjoint ({several} of {rows} rows "
                "are given several times). If they share rows on purpose, set `overlaps = True` in the class"
            )
        if not leaves_rows and not counts.all():
            raise ValueError(
                f"indices: {int(np.count_nonzero(counts == 0))} of {rows} rows belong to no client, the first is row "
                f"{int(counts.argmin())}. If rows are left out on purpose, set `leaves_rows = True` in the class"
            )
        if not (len(self.val) == len(self.test) == self.num_clients):
            raise ValueError(f"val, test: {len(self.val)} and {len(self.test)} counts for {self.num_clients} clients")
        if self.unlabelled.any():
            raise ValueError("unlabelled: a partition gives rows only; `labels:` of the configuration hides labels")
        wrong = np.flatnonzero((self.val < 0) | (self.test < 0) | (self.val + self.test > sizes))
        if len(wrong):
            raise ValueError(
                f"val, test: client {wrong[0]} holds out more than its {sizes[wrong[0]]} rows, or a negative number"
            )


def whole(name: str, values: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return row numbers, counts or client ids (n,) as int64; whole floats are taken, fractions refused.

    >>> whole("client", np.array([0.0, 2.0])).tolist()
    [0, 2]
    >>> whole("client", np.array([0.0, 0.5]))
    Traceback (most recent call last):
    ValueError: client: 0.5 at position 1 is not a whole number
    """
    array = np.asarray(values)
    if array.dtype == np.int64 and array.ndim == 1:
        return array
    if array.ndim != 1 or (array.dtype.kind not in "iuf" and array.size):
        raise ValueError(f"{name}: {array.dtype} {array.shape} is not one whole number per entry")
    if array.dtype.kind == "f" and len(wrong := np.flatnonzero(~(np.floor(array) == array) | ~np.isfinite(array))):
        raise ValueError(f"{name}: {array[wrong[0]]} at position {wrong[0]} is not a whole number")
    return array.astype(np.int64)


def owners(partition: Partition) -> np.ndarray:
    """Return (R,): the client that owns each of the partition's indices.

    >>> owners(Partition(np.array([7, 8, 9]), np.array([0, 1, 3]))).tolist()
    [0, 1, 1]
    """
    return np.repeat(np.arange(partition.num_clients), np.diff(partition.offsets))
