"""Feature shift: Gaussian noise that grows from client to client.    x -> x + N(0, level (c + 1) / N), a variance

Li, Diao, Chen, He 2022, arXiv:2102.02079, section 4.2 (noise-based feature imbalance): party i of 1..N has noise of
variance sigma i / N. The noise of a sample depends on (seed, row) only, scaled by the client's deviation. A shift
changes the training rows once, after partitioning; the server's test set stays clean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.checks import not_negative
from fl.data.dataset import Dataset
from fl.data.partition import Partition, owners
from fl.data.shift import Shift, map_features
from fl.registry import register
from fl.tensors import random


def deviations(clients: int, level: float, random_order: bool = False, seed: int = 0) -> np.ndarray:
    """Return the standard deviation (clients,) of each client's noise.

    >>> deviations(4, 1.0).round(3).tolist()
    [0.5, 0.707, 0.866, 1.0]
    """
    ranks = random.permutation(clients, seed, "noise/order") if random_order else np.arange(clients)
    return np.sqrt(level * (ranks + 1) / clients)


@register("shift", "noise")
@dataclass(frozen=True, kw_only=True)
class FeatureNoise(Shift):
    """Gaussian noise of variance level (c + 1) / N for client c of N.

    Args:
        level: Variance of the noisiest client; at least 0.
        random_order: Assign the variances in random order. Use it if ids are sorted by size or class.
        seed: Seed of noise and order.
    """

    level: float = 0.1
    random_order: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        not_negative(level=self.level, hint="it is a variance")

    def apply(self, dataset: Dataset, partition: Partition) -> Dataset:
        sigma = deviations(partition.num_clients, self.level, self.random_order, self.seed)[owners(partition)]
        draw = random.numpy_generator(self.seed, "noise")
        x = dataset.train["x"]
        noise = draw.standard_normal(x.shape, np.float32)  # by row of the data set, independent of the partition

        def add(rows: np.ndarray, at: slice) -> np.ndarray:
            scale = sigma[at].astype(np.float32).reshape(-1, *[1] * (x.ndim - 1))
            return rows + scale * noise[partition.indices[at]]

        return map_features(dataset, partition, add)
