"""Feature shift: Gaussian noise that grows from client to client.    x -> x + N(0, level (c + 1) / N), a variance

Li, Diao, Chen, He 2022, arXiv:2102.02079, section 4.2 (noise-based feature imbalance): party i of 1..N has noise of variance sigma i / N. A
sample's noise is a function of (seed, its row) alone, scaled by its client's. `random_order` deals the levels to the clients in random
order: where their ids go by size or by class the two must not be mixed up. A shift changes the training rows once, after
partitioning; the server's test set stays clean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.data.dataset import Dataset
from fl.data.partition import Partition, owners
from fl.data.shift import map_features
from fl.registry import register
from fl.tensors import random


def deviations(clients: int, level: float, random_order: bool = False, seed: int = 0) -> np.ndarray:
    """(clients,): standard deviation of each client's noise."""
    ranks = random.permutation(clients, seed, "noise/order") if random_order else np.arange(clients)
    return np.sqrt(level * (ranks + 1) / clients)


@register("shift", "noise")
@dataclass(frozen=True, kw_only=True)
class FeatureNoise:
    """Gaussian noise of variance `level` (c + 1) / N for client c."""

    level: float = 0.1
    random_order: bool = False
    seed: int = 0

    def __post_init__(self):
        if not self.level >= 0:
            raise ValueError(f"level: {self.level} is not a variance of at least 0")

    def apply(self, dataset: Dataset, partition: Partition) -> Dataset:
        sigma = deviations(partition.num_clients, self.level, self.random_order, self.seed)[owners(partition)]
        draw = random.numpy_generator(self.seed, "noise")
        x = dataset.train["x"]
        every = draw.standard_normal(x.shape, np.float32)  # by row of the data, whoever has it

        def add(mine: np.ndarray, at: slice) -> np.ndarray:
            scale = sigma[at].astype(np.float32).reshape(-1, *[1] * (x.ndim - 1))
            return mine + scale * every[partition.indices[at]]

        return map_features(dataset, partition, add)
