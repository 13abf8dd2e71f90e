"""A budget of labels: some training rows of each client keep their labels, in an order drawn from (seed, row).

    share      floor(share n) of n rows
    per_class  up to this many rows of each class
    total      exactly this many rows of all clients together

`by: client` spends the budget within each client (`total` in proportion to the clients' rows), `by: global` over the
rows of all clients. Each client that has training rows keeps at least one label: its first row in the order comes
before all others, so it counts towards the budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fl.checks import one_of, positive, within
from fl.data.dataset import Dataset
from fl.data.grouping import apportion, class_codes, hashed_rank, rank_in_group
from fl.data.labels import Labels, training_positions
from fl.data.partition import Partition, owners
from fl.registry import register
from fl.tensors import random

Scope = Literal["client", "global"]


@register("labels", "budget")
@dataclass(frozen=True, kw_only=True)
class Budget(Labels):
    """A number of labels. Give exactly one of share, per_class and total.

    Args:
        share: Fraction of training rows that keep their labels, in (0, 1].
        per_class: Most rows of each class that keep their labels, positive.
        total: Rows of all clients together that keep their labels; at least the number of clients.
        by: Whether the budget holds for each "client" or, over all clients together, "global".
        seed: Seed of the order.
    """

    share: float | None = None
    per_class: int | None = None
    total: int | None = None
    by: Scope = "client"
    seed: int = 0

    def __post_init__(self) -> None:
        within("(0, 1]", share=self.share)
        positive(per_class=self.per_class, total=self.total)
        one_of(("client", "global"), by=self.by)
        given = [name for name in ("share", "per_class", "total") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"{given[1]}: given beside {given[0]}; give one of share, per_class and total"
                if given
                else "share: missing; give one of share, per_class and total"
            )

    def keep(self, dataset: Dataset, partition: Partition) -> np.ndarray:
        position = training_positions(partition)
        rows, owner = partition.indices[position], owners(partition)[position]
        words = random.hash64(self.seed, "labels", rows)
        in_client = hashed_rank(owner, partition.num_clients, words)
        found = np.zeros(len(partition.indices), bool)
        if self.per_class is not None:
            found[position] = self._by_class(dataset.labels[rows], owner, words, in_client, self.per_class)
        elif self.by == "client":
            found[position] = in_client < self._quotas(np.bincount(owner, minlength=partition.num_clients))[owner]
        else:  # each client's first row, then the others
            found[position] = hashed_rank(np.zeros_like(owner), 1, _first_rows_first(words, in_client)) < self._budget(
                owner
            )
        return found

    def _budget(self, owner: np.ndarray) -> int:
        """Return the number of labels of all clients together; `owner` (n,) has the client of each row."""
        clients = len(np.unique(owner))
        if self.total is None:
            return max(int((self.share or 0.0) * len(owner)), clients)
        if not clients <= self.total <= len(owner):
            raise ValueError(
                f"total: {self.total} labels for {clients} clients with {len(owner)} training rows; each client keeps "
                f"at least one label, so {clients} .. {len(owner)} are possible (labels: clients labels whole clients)"
            )
        return self.total

    def _quotas(self, sizes: np.ndarray) -> np.ndarray:
        """Return the number of labels of each client, (N,), of its `sizes` (N,) training rows."""
        least = np.minimum(sizes, 1)
        if self.total is None:
            return np.maximum((sizes * (self.share or 0.0)).astype(np.int64), least)
        rest = self._budget(np.repeat(np.arange(len(sizes)), sizes)) - int(least.sum())
        return least + (apportion((sizes - least).astype(np.float64), rest) if rest else 0)

    def _by_class(
        self, y: np.ndarray, owner: np.ndarray, words: np.ndarray, in_client: np.ndarray, most: int
    ) -> np.ndarray:
        """Return (n,) bool: the first `most` rows of each class (of each client), and each client's first row."""
        classes, codes = class_codes(y)
        words = _first_rows_first(words, in_client)
        if self.by == "global":
            rank = hashed_rank(codes, len(classes), words)
        else:
            rank = rank_in_group(owner * len(classes) + codes, words)
        return (rank < most) | (in_client == 0)


def _first_rows_first(words: np.ndarray, in_client: np.ndarray) -> np.ndarray:
    """Return words (n,) in whose order the clients' first rows (rank 0 in `in_client`) come before all others."""
    return words >> np.uint64(1) | (in_client > 0).astype(np.uint64) << np.uint64(63)
