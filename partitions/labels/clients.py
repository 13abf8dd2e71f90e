"""Whole clients: some clients keep the labels of all their rows, the others have none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.checks import positive
from fl.data.dataset import Dataset
from fl.data.labels import Labels
from fl.data.partition import Partition, owners
from fl.registry import register
from fl.tensors import random


@register("labels", "clients")
@dataclass(frozen=True, kw_only=True)
class LabelledClients(Labels):
    """Clients with labels for all rows, and clients with labels for none.

    Args:
        labelled: Number of clients with labels, positive, drawn among all clients; or their ids, as a list.
        seed: Seed of the draw.
    """

    labelled: int | tuple[int, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.labelled, int):
            positive(labelled=self.labelled)

    def keep(self, dataset: Dataset, partition: Partition) -> np.ndarray:
        count = partition.num_clients
        if isinstance(self.labelled, int):
            if self.labelled > count:
                raise ValueError(f"labelled: {self.labelled} is more than the {count} clients")
            ids = random.permutation(count, self.seed, "labels")[: self.labelled]
        else:
            ids = np.array(self.labelled, np.int64)
            if len(wrong := ids[(ids < 0) | (ids >= count)]):
                raise ValueError(f"labelled: {wrong[0]} is not one of the clients 0..{count - 1}")
        has_labels = np.zeros(count, bool)
        has_labels[ids] = True
        return has_labels[owners(partition)]
