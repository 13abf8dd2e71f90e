"""Concept shift: each client calls some classes by other names.    y -> p_c(y), p_c a permutation of the client's own

For client c, `classes` of the K classes are drawn and their labels permuted cyclically in drawn order, the rest stay: with
classes >= 2 none of the drawn keeps its name. A shift changes the samples' labels once, after partitioning.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fl.data.dataset import Dataset
from fl.data.partition import Partition, owners
from fl.registry import register
from fl.tensors import random


def relabelling(clients: int, labels: int, classes: int, seed: int = 0) -> np.ndarray:
    """(clients, labels): what each client calls each class."""
    if not 2 <= classes <= labels:
        raise ValueError(f"classes: {classes} is not in 2..{labels}, the number of classes there are")
    drawn = np.argsort(random.hash64(seed, "relabel", np.arange(clients)[:, None], np.arange(labels)), axis=1)[
        :, :classes
    ]
    names = np.tile(np.arange(labels), (clients, 1))
    np.put_along_axis(names, drawn, np.roll(drawn, -1, axis=1), axis=1)
    return names


@register("shift", "relabel")
@dataclass(frozen=True, kw_only=True)
class Relabel:
    """`classes` of the classes change their names among themselves, differently for every client; the server's test set
    keeps the true ones."""

    classes: int
    seed: int = 0

    changes: ClassVar[tuple[str, ...]] = ("y",)

    def apply(self, dataset: Dataset, partition: Partition) -> Dataset:
        y = dataset.labels
        names = relabelling(partition.num_clients, int(y.max()) + 1, self.classes, self.seed)
        owner = owners(partition)
        relabelled = y.copy()
        relabelled[partition.indices] = names[owner, y[partition.indices]]
        return replace(dataset, train={**dataset.train, "y": relabelled})
