"""Equal shares of a shuffled dataset.    client c owns positions floor(c R / N) .. floor((c+1) R / N) of a random order"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.data.dataset import Dataset
from fl.data.grouping import hash_order
from fl.data.partition import Partition
from fl.registry import register
from fl.tensors import random


def iid(rows: int, clients: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(indices, offsets); sizes differ by one at most."""
    if clients < 1:
        raise ValueError(f"clients: {clients} is not positive")
    if clients > rows:
        raise ValueError(f"clients: {clients} is more than the dataset's {rows} rows, and each needs one")
    return hash_order(random.hash64(seed, "iid", np.arange(rows))), np.arange(clients + 1) * rows // clients


@register("partition", "iid")
@dataclass(frozen=True, kw_only=True)
class Iid:
    clients: int
    seed: int = 0

    def split(self, dataset: Dataset) -> Partition:
        return Partition(*iid(len(dataset), self.clients, self.seed))
