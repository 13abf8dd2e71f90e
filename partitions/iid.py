"""Equal shares of the shuffled rows.    client c: positions floor(c R / N) .. floor((c+1) R / N) of a random order"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.checks import positive
from fl.data.dataset import Dataset
from fl.data.grouping import hash_order
from fl.data.partition import Partition
from fl.data.partitioner import Partitioner
from fl.registry import register
from fl.tensors import random


def iid(rows: int, clients: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (indices, offsets). Sizes differ by at most one.

    >>> indices, offsets = iid(rows=5, clients=2)
    >>> sorted(indices.tolist()), offsets.tolist()
    ([0, 1, 2, 3, 4], [0, 2, 5])
    """
    positive(clients=clients)
    if clients > rows:
        raise ValueError(f"clients: {clients} is more than the {rows} rows of the data set; each client needs one")
    return hash_order(random.hash64(seed, "iid", np.arange(rows))), np.arange(clients + 1) * rows // clients


@register("partition", "iid")
@dataclass(frozen=True, kw_only=True)
class Iid(Partitioner):
    """Equal random shares.

    Args:
        clients: Number of clients; from 1 to the number of rows.
        seed: Seed of the shuffle.
    """

    clients: int
    seed: int = 0

    def split(self, dataset: Dataset) -> Partition:
        return Partition(*iid(len(dataset), self.clients, self.seed))
