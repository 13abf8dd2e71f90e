"""MNIST at half the resolution: 1 x 14 x 14, means of 2 x 2 pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.data.dataset import Arrays, Dataset, Loader
from fl.data.sets.mnist import MNIST


@dataclass(frozen=True, kw_only=True)
class SmallMNIST(Loader):
    """MNIST with 14 x 14 pixels.

    Args:
        train: number of training samples.
        test: number of test samples.
        seed: seed of their choice.
    """

    train: int = 3000
    test: int = 1000
    seed: int = 0

    def load(self) -> Dataset:
        return MNIST(train=self.train, test=self.test, seed=self.seed).load().mapped(lambda _, arrays: halved(arrays))


def halved(arrays: Arrays) -> Arrays:
    """Return the arrays with images of half the sides."""
    x = arrays["x"]
    n, channels, height, width = x.shape
    small = x.reshape(n, channels, height // 2, 2, width // 2, 2).mean((3, 5))
    return {**arrays, "x": small.astype(np.float32)}
