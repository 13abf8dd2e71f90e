"""Which rows are whose: two arrays for any number of clients, and what each client holds out.

    indices  |--- client 0 ---|-- client 1 --|------ client 2 ------| ...      client c: offsets[c] .. offsets[c+1]
             | train |val|test|

No loop over clients anywhere: a million clients are a few operations on arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np

from fl.data.dataset import Dataset
from fl.tensors import random


@dataclass(frozen=True, eq=False)
class Partition:
    """indices (R,): rows of the dataset, client by client; offsets (N+1,); val, test (N,): rows held out at the end of each
    client's slice, val before test (default: none). All int64."""

    indices: np.ndarray
    offsets: np.ndarray
    val: np.ndarray = None  # type: ignore[assignment]
    test: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self):
        for name in ("val", "test"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, np.zeros(self.num_clients, np.int64))

    @property
    def num_clients(self) -> int:
        return len(self.offsets) - 1

    @property
    def empty_clients(self) -> np.ndarray:
        """Ids of the clients without any row."""
        return np.flatnonzero(np.diff(self.offsets) == 0)

    def train_slices(self) -> tuple[np.ndarray, np.ndarray]:
        """(starts, sizes), each (N,): client c trains on indices[starts[c] : starts[c] + sizes[c]]."""
        return self.offsets[:-1], np.diff(self.offsets) - self.val - self.test

    def view_rows(self, client: int, view: Literal["train", "val", "test"]) -> np.ndarray:
        """The rows of the dataset in one client's view."""
        if not 0 <= client < self.num_clients:
            raise ValueError(f"client: {client} is not one of 0..{self.num_clients - 1}")
        start, end = self.offsets[client], self.offsets[client + 1]
        first_test = end - self.test[client]
        first_val = first_test - self.val[client]
        spans = {"train": (start, first_val), "val": (first_val, first_test), "test": (first_test, end)}
        if view not in spans:
            raise ValueError(f"view: {view!r} is not one of {list(spans)}")
        a, b = spans[view]
        return self.indices[a:b]

    def hold_out(self, val: float, test: float, seed: int) -> Partition:
        """Of each client's n rows, in addressed random order, floor(test n) go to test and floor(val n) to val.

        At least one row stays for training. A row's place in the order depends on (seed, row) alone. Test rows that the partition
        has already stay as they are, n are then the others, and no more can be asked for.
        """
        if not (val >= 0 and test >= 0 and val + test < 1):
            raise ValueError(f"val: {val} and test: {test} are not fractions with val + test < 1")
        brought = bool(self.test.any())
        if brought and test:
            raise ValueError(f"test: {test} beside a partition that brings its own test rows; set it to 0")
        if val == test == 0:
            return self
        sizes = np.diff(self.offsets) - self.test
        groups = np.repeat(
            np.arange(2 * self.num_clients), np.stack([sizes, self.test], 1).ravel()
        )  # others, test; by client
        shuffled = by_hash(random.hash64(seed, "hold_out", self.indices))
        order = shuffled[grouped(groups[shuffled], 2 * self.num_clients)[0]]
        spare = np.maximum(sizes - 1, 0)
        tests = np.minimum((test * sizes).astype(np.int64), spare)
        vals = np.minimum((val * sizes).astype(np.int64), spare - tests)
        return replace(self, indices=self.indices[order], val=vals, test=self.test if brought else tests)

    def capped(self, labels: np.ndarray, most: int) -> Partition:
        """With at most so many training rows of each class for each client, the first in its order; val and test as they are."""
        whose, train = owners(self), self._trains()
        _, codes = coded(labels)
        group = whose * (int(codes.max()) + 1) + codes[self.indices]
        kept = ~train | (places(group, ~train) < most)  # within a group the training rows first, as they come
        offsets = np.concatenate([[0], np.cumsum(np.bincount(whose[kept], minlength=self.num_clients))])
        return replace(self, indices=self.indices[kept], offsets=offsets)

    def pooled(self) -> Partition:
        """With all training rows in the hands of client 0; val and test rows as they are."""
        train, held = self._trains(), self.val + self.test
        held[0] += int(train.sum())
        offsets = np.concatenate([[0], np.cumsum(held)])
        return replace(self, indices=np.concatenate([self.indices[train], self.indices[~train]]), offsets=offsets)

    def _trains(self) -> np.ndarray:
        """(len(indices),) bool: which of them are training rows."""
        starts, sizes = self.train_slices()
        return np.arange(len(self.indices)) < (starts + sizes)[owners(self)]

    def covers(self, rows: int) -> bool:
        """Whether each of the rows 0..rows-1 is someone's."""
        return bool(np.all(np.bincount(self.indices, minlength=rows)[:rows]))

    def check(self, rows: int) -> None:
        """A `ValueError` unless this is a partition of (some of) the rows 0..rows-1."""
        sizes = np.diff(self.offsets)
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.indices) or np.any(sizes < 0):
            raise ValueError(f"offsets: they do not ascend from 0 to {len(self.indices)}, the number of indices")
        if len(self.indices) and not (0 <= self.indices.min() and self.indices.max() < rows):
            raise ValueError(f"indices: {self.indices.min()}..{self.indices.max()} go beyond the dataset's {rows} rows")
        counts = np.bincount(self.indices, minlength=1)
        if counts.max() > 1:
            raise ValueError(f"indices: row {counts.argmax()} is given {counts.max()} times; clients must be disjoint")
        if not (len(self.val) == len(self.test) == self.num_clients):
            raise ValueError(f"val, test: {len(self.val)} and {len(self.test)} counts for {self.num_clients} clients")
        wrong = np.flatnonzero((self.val < 0) | (self.test < 0) | (self.val + self.test > sizes))
        if len(wrong):
            raise ValueError(
                f"val, test: client {wrong[0]} holds out more than its {sizes[wrong[0]]} rows (or less than none)"
            )


class Partitioner(Protocol):
    """A part that gives rows to clients, registered under "partition"."""

    def split(self, dataset: Dataset) -> Partition:
        """Return the partition of the dataset's training rows."""


class Shift(Protocol):
    """A part that changes each client's samples in its own way, registered under "shift"."""

    def apply(self, dataset: Dataset, partition: Partition) -> Dataset:
        """Return the dataset with the changed samples."""


# Both sort distinct words that carry the position in their low bits: several times faster than a stable argsort.


def by_hash(words: np.ndarray) -> np.ndarray:
    """Positions 0..n-1 in the order of hashed `words`, as far as their upper bits tell, then ascending: a shuffle."""
    low = np.uint64((1 << len(words).bit_length()) - 1)
    return (np.sort(words & ~low | np.arange(len(words), dtype=np.uint64)) & low).astype(np.int64)


def grouped(owners: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(order, offsets): order[offsets[c] : offsets[c+1]] are the positions where `owners` (in 0..count-1) is c, ascending."""
    words = owners.astype(np.uint64) << np.uint64(32) | np.arange(len(owners), dtype=np.uint64)
    order = (np.sort(words) & np.uint64(0xFFFFFFFF)).astype(np.int64)
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(owners, minlength=count), out=offsets[1:])
    return order, offsets


def shuffled_groups(owners: np.ndarray, count: int, *address: int | str) -> tuple[np.ndarray, np.ndarray]:
    """`grouped`, but in addressed random order within each group: owner, upper bits of a hash and position in one word."""
    n = len(owners)
    place, owner = n.bit_length(), int(count).bit_length()
    words = random.hash64(*address, np.arange(n)) >> np.uint64(owner)
    words &= ~np.uint64((1 << place) - 1)
    words |= owners.astype(np.uint64) << np.uint64(64 - owner)
    words |= np.arange(n, dtype=np.uint64)
    words.sort()
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(owners, minlength=count), out=offsets[1:])
    return (words & np.uint64((1 << place) - 1)).astype(np.int64), offsets


def coded(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(classes (K,), codes (R,)): the distinct labels, ascending, and which of them each row has."""
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
        raise ValueError(
            f"labels: {labels.dtype} {labels.shape} are not one class per row; take a partition without labels"
        )
    low, high = int(labels.min()), int(labels.max())
    if high - low > len(labels):
        return np.unique(labels, return_inverse=True)
    places = labels.astype(np.int64) - low  # few values: counted, not sorted
    there = np.bincount(places) > 0
    return (np.flatnonzero(there) + low).astype(labels.dtype), (np.cumsum(there) - 1)[places]


def dealt(codes: np.ndarray, counts: np.ndarray, *address: int | str) -> tuple[np.ndarray, np.ndarray]:
    """(indices, offsets) in which client c has counts[c, k] random rows of class k, in random order; counts (N, K) int64, codes
    (R,) in 0..K-1. Rows that no count asks for are nobody's."""
    clients, classes = counts.shape
    by_class, ends = shuffled_groups(codes, classes, *address, "deal")
    nobodys = np.diff(ends) - counts.sum(0)
    if counts.size and (counts.min() < 0 or nobodys.min() < 0):
        raise ValueError(f"counts: of class {int(nobodys.argmin())} there are {-int(nobodys.min())} rows too few")
    shares = np.concatenate([counts, nobodys[None]]).T.ravel()  # class by class, to each client and to nobody
    owners = np.empty(len(codes), np.int64)
    owners[by_class] = np.repeat(np.tile(np.arange(clients + 1), classes), shares)
    order, offsets = shuffled_groups(owners, clients + 1, *address, "mix")
    return order[: offsets[clients]], offsets[: clients + 1]


def apportioned(weights: np.ndarray, total: int) -> np.ndarray:
    """(N,) int64 that sum to `total`, within one of total * weights / sum(weights): the largest remainders are rounded up."""
    exact = weights / weights.sum() * total
    sizes = np.floor(exact).astype(np.int64)
    sizes[np.argsort(sizes - exact, kind="stable")[: total - int(sizes.sum())]] += 1
    return sizes


def places(groups: np.ndarray, key: np.ndarray) -> np.ndarray:
    """(n,) int64: the how manieth each is in its group (n,), from 0, in ascending order of `key` (n,); of equals as they come."""
    order = np.lexsort((key, groups))
    first = np.concatenate([[0], np.flatnonzero(np.diff(groups[order])) + 1])
    found = np.empty(len(order), np.int64)
    found[order] = np.arange(len(order)) - np.repeat(first, np.diff([*first, len(order)]))
    return found


def owners(partition: Partition) -> np.ndarray:
    """(len(indices),): whose each of them is."""
    return np.repeat(np.arange(partition.num_clients), np.diff(partition.offsets))


def shifted(dataset: Dataset, partition: Partition, change: Callable[[np.ndarray, slice], np.ndarray]) -> Dataset:
    """The dataset with other features for the rows that are someone's: `change(x, at)` gets the float32 features of the rows
    partition.indices[at], some thousands at a time. Whole numbers are rounded back to what their type holds."""
    x = dataset.train["x"]
    changed, kind = x.copy(), x.dtype
    for start in range(0, len(partition.indices), 4096):
        at = slice(start, start + 4096)
        new = change(x[partition.indices[at]].astype(np.float32), at)
        if kind.kind in "iu":
            new = np.clip(np.rint(new), np.iinfo(kind).min, np.iinfo(kind).max)
        changed[partition.indices[at]] = new
    return replace(dataset, train={**dataset.train, "x": changed})
