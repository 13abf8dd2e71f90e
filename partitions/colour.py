"""Feature shift: each client's camera has its own brightness, contrast and colour cast.

    x -> b_c g_c (m + k_c (x - m)),   m = mean(x) of the image
    b_c ~ U(1 - brightness, 1 + brightness)    k_c ~ U(1 - contrast, 1 + contrast)
    g_c ~ U(1 - cast, 1 + cast), one per channel

This is colour jitter with factors drawn once per client instead of once per image. Nothing is clipped, so it can be
used with normalised pixels. brightness = contrast = cast = 0 changes nothing. A shift changes the training rows once,
after partitioning; the server's test set keeps its colours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.checks import within
from fl.data.dataset import Dataset
from fl.data.partition import Partition, owners
from fl.data.shift import Shift, map_features
from fl.registry import register
from fl.tensors import random


def factors(clients: int, spread: float, purpose: str, seed: int = 0, channels: int = 1) -> np.ndarray:
    """Draw (clients, channels) ~ U(1 - spread, 1 + spread) with the address (seed, purpose, client, channel)."""
    return 1 + spread * (2 * random.uniform(seed, purpose, np.arange(clients)[:, None], np.arange(channels)) - 1)


@register("shift", "colour")
@dataclass(frozen=True, kw_only=True)
class Colour(Shift):
    """Brightness, contrast and colour cast per client, for images (channels, height, width).

    Args:
        brightness: Spread of the brightness factors, in [0, 1].
        contrast: Spread of the contrast factors, in [0, 1].
        cast: Spread of the factors per channel, in [0, 1].
        seed: Seed of the factors.
    """

    brightness: float = 0.3
    contrast: float = 0.3
    cast: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        within("[0, 1]", brightness=self.brightness, contrast=self.contrast, cast=self.cast)

    def apply(self, dataset: Dataset, partition: Partition) -> Dataset:
        shape = dataset.train["x"].shape
        if len(shape) != 4:
            raise ValueError(f"colour: samples of shape {shape[1:]} are not images (channels, height, width)")
        n, owner = partition.num_clients, owners(partition)
        gain = factors(n, self.brightness, "colour/brightness", self.seed)
        gain = (gain * factors(n, self.cast, "colour/cast", self.seed, shape[1])).astype(np.float32)
        contrast = factors(n, self.contrast, "colour/contrast", self.seed).astype(np.float32)

        def recolour(x: np.ndarray, at: slice) -> np.ndarray:
            mean = x.mean((1, 2, 3), keepdims=True)
            return gain[owner[at], :, None, None] * (mean + contrast[owner[at], :, None, None] * (x - mean))

        return map_features(dataset, partition, recolour)
