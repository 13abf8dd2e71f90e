"""One class per client: client c trains on class c mod K, and all clients are tested on all classes.

    test rows    floor(test n_k) random rows of each class k, dealt out evenly to all clients
    client c     an equal share of the other rows of class c mod K, at most `rows`

With N > K clients, several have the same class. With N < K, the last classes are only in test rows. Use it with
`shift: own_or_other`, which marks the test rows of the own class, and `task: one_class`. This is the setting of
ProtoFL, Kim, Kwak, Jung, Shin, Kim, Kim 2023, arXiv:2307.12450.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.checks import at_least, within
from fl.data.dataset import Dataset
from fl.data.grouping import class_codes, deal_classes
from fl.data.partition import Partition
from fl.data.partitioner import Partitioner
from fl.registry import register


def one_class_counts(supply: np.ndarray, clients: int, tests: np.ndarray, rows: int | None = None) -> np.ndarray:
    """Return (2, N, K) int64: the training rows and the test rows of each class at each client.

    >>> one_class_counts(np.array([6, 5]), 3, np.array([3, 2])).tolist()
    [[[2, 0], [0, 3], [1, 0]], [[1, 0], [1, 1], [1, 1]]]

    Args:
        supply: number of rows of each class, (K,).
        clients: number of clients N.
        tests: number of test rows of each class, (K,).
        rows: largest number of training rows of a client.
    """
    ids, classes = np.arange(clients)[:, None], np.arange(len(supply))
    each, rest = np.divmod(tests, clients)
    test = each + ((ids - classes) % clients < rest)  # the clients that get one row more differ between classes
    holders = np.bincount(np.arange(clients) % len(supply), minlength=len(supply))
    share, rest = np.divmod(supply - tests, np.maximum(holders, 1))
    train = (ids % len(supply) == classes) * (share + (ids // len(supply) < rest))
    return np.stack([train if rows is None else np.minimum(train, rows), test])


@register("partition", "one_class")
@dataclass(frozen=True, kw_only=True)
class OneClass(Partitioner):
    """Training rows of one class for each client, test rows of all classes.

    Args:
        clients: Number of clients; at least 1.
        test: Fraction of the rows of each class that are test rows, in (0, 1); splits.test stays 0.
        rows: Largest number of training rows of a client; at least 1. Default: all of its share.
        seed: Seed of the random choices.
    """

    clients: int
    test: float = 0.2
    rows: int | None = None
    seed: int = 0

    leaves_rows = True

    def __post_init__(self) -> None:
        at_least(1, rows=self.rows)
        within("(0, 1)", test=self.test)

    def split(self, dataset: Dataset) -> Partition:
        classes, codes = class_codes(dataset.labels)
        if not 1 <= self.clients <= len(codes):
            raise ValueError(f"clients: {self.clients} is not in 1..{len(codes)}, the number of rows")
        supply = np.bincount(codes, minlength=len(classes))
        tests = (self.test * supply).astype(np.int64)
        train, test = one_class_counts(supply, self.clients, tests, self.rows)
        if (empty := np.flatnonzero(train.sum(1) == 0)).size:
            own = int(empty[0]) % len(classes)
            raise ValueError(
                f"clients: {self.clients} leave client {empty[0]} no training row, because class {classes[own]} has "
                f"{supply[own] - tests[own]} beside its test rows; use fewer clients or a smaller test"
            )
        counts = np.stack([train, test], 1).reshape(2 * self.clients, -1)  # a client's training rows, then its tests
        indices, offsets = deal_classes(codes, counts, self.seed, "one_class")
        return Partition(indices, offsets[::2], test=test.sum(1))
