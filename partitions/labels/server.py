"""Labels at the server only: rows with labels leave the clients and become the server's own training rows.

The clients keep the other rows, without labels. Methods train on `ctx.server` of the server's context.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl.checks import within
from fl.data.dataset import Dataset
from fl.data.grouping import hashed_rank
from fl.data.labels import Labels, training_positions
from fl.data.partition import Partition
from fl.registry import register
from fl.tensors import random


@register("labels", "server")
@dataclass(frozen=True, kw_only=True)
class ServerLabels(Labels):
    """A fraction of all training rows, with their labels, moves to the server.

    Args:
        share: Fraction of the training rows of all clients together, in (0, 1); at least one row moves.
        seed: Seed of the draw.
    """

    share: float
    seed: int = 0

    to_server: ClassVar[bool] = True

    def __post_init__(self) -> None:
        within("(0, 1)", share=self.share)

    def keep(self, dataset: Dataset, partition: Partition) -> np.ndarray:
        position = training_positions(partition)
        words = random.hash64(self.seed, "labels", partition.indices[position])
        found = np.zeros(len(partition.indices), bool)
        found[position] = hashed_rank(np.zeros_like(position), 1, words) < max(int(self.share * len(position)), 1)
        return found
