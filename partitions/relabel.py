"""Concept shift: each client renames some classes.    y -> p_c(y), with a permutation p_c per client

For client c, `classes` of the K classes are drawn and their labels are permuted cyclically in the order drawn, so each
of them gets another label. Other labels stay. A shift changes the labels once, after partitioning.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fl.data.dataset import Dataset
from fl.data.partition import Partition, owners
from fl.data.shift import Shift
from fl.registry import register
from fl.tensors import random


def relabelling(clients: int, labels: int, classes: int, seed: int = 0) -> np.ndarray:
    """Return (clients, labels): the label that each client uses for each class."""
    if not 2 <= classes <= labels:
        raise ValueError(f"classes: {classes} is not in 2..{labels}, the number of classes")
    drawn = np.argsort(random.hash64(seed, "relabel", np.arange(clients)[:, None], np.arange(labels)), axis=1)[
        :, :classes
    ]
    names = np.tile(np.arange(labels), (clients, 1))
    np.put_along_axis(names, drawn, np.roll(drawn, -1, axis=1), axis=1)
    return names


@register("shift", "relabel")
@dataclass(frozen=True, kw_only=True)
class Relabel(Shift):
    """Permuted labels of some classes, differently for each client. The server's test set keeps the true labels.

    Args:
        classes: Number of classes to permute, at least 2.
        seed: Seed of the permutations.
    """

    classes: int
    seed: int = 0

    changes: ClassVar[tuple[str, ...]] = ("y",)

    def apply(self, dataset: Dataset, partition: Partition) -> Dataset:
        y = dataset.labels
        names = relabelling(partition.num_clients, int(y.max()) + 1, self.classes, self.seed)
        owner = owners(partition)
        relabelled = y.copy()
        mine = y[partition.indices]
        relabelled[partition.indices] = np.where(mine < 0, mine, names[owner, mine])  # -1 has no label
        return replace(dataset, train={**dataset.train, "y": relabelled})
