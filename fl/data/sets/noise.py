"""Random data of any size, for benchmarks.    x ~ N(0, I), or ids;   y = argmax(T x) with a random linear teacher T"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from fl.checks import not_negative, positive
from fl.data.dataset import Dataset, Loader
from fl.registry import register
from fl.tensors import random

_BLOCK = 8192  # rows labelled at once


@dataclass(frozen=True, kw_only=True)
class LogNormal:
    """Integers from a log-normal distribution, rounded down and clipped to low..high.

    Args:
        lognormal: Standard deviation of the logarithm; at least 0.
        mean: Mean before rounding and clipping; positive.
        low: Minimum.
        high: Maximum. Default: none.
    """

    lognormal: float
    mean: float
    low: int = 1
    high: int | None = None

    def draw(self, generator: np.random.Generator, count: int) -> np.ndarray:
        """Draw (count,) int64."""
        not_negative(lognormal=self.lognormal)
        positive(mean=self.mean)
        drawn = generator.lognormal(math.log(self.mean) - self.lognormal**2 / 2, self.lognormal, count)
        return np.clip(drawn, self.low, self.high).astype(np.int64)


@register("data", "noise")
@dataclass(frozen=True, kw_only=True)
class RandomData(Loader):
    """Random inputs for benchmarks, standard normal or uniform ids, with the labels of a random linear teacher.

    Args:
        shape: Shape of a sample.
        classes: Number of classes; positive.
        clients: Number of clients; positive.
        samples: Samples per client: a number, or a distribution such as {lognormal: 1, mean: 20, low: 5, high: 200}.
        vocabulary: Draw ids 0..vocabulary-1 instead of normal numbers; positive.
        seed: Seed of all draws.
    """

    shape: tuple[int, ...] = (60,)
    classes: int = 10
    clients: int = 100
    samples: int | LogNormal = 20
    vocabulary: int | None = None
    seed: int = 0

    def load(self) -> Dataset:
        positive(classes=self.classes, clients=self.clients, vocabulary=self.vocabulary)
        draw = random.numpy_generator(self.seed, "noise")
        if isinstance(self.samples, LogNormal):
            sizes = self.samples.draw(draw, self.clients)
        else:
            sizes = np.full(self.clients, self.samples)
        if sizes.min() < 0 or not sizes.any():
            raise ValueError(f"samples: {self.samples} leaves nothing to train on")
        shape, source = (int(sizes.sum()), *self.shape), random.torch_generator(self.seed, "noise")
        if self.vocabulary is None:  # torch draws normal numbers three times faster than NumPy
            x = torch.empty(shape).normal_(generator=source).numpy()
        else:
            x = torch.randint(self.vocabulary, shape, generator=source, dtype=torch.int32).numpy()
        teacher = draw.standard_normal((math.prod(self.shape), self.classes))
        y = np.empty(len(x), np.int64)
        for a in range(0, len(x), _BLOCK):  # float64, because the last bits of float32 would decide near ties
            y[a : a + _BLOCK] = (x[a : a + _BLOCK].reshape(-1, len(teacher)).astype(np.float64) @ teacher).argmax(1)
        return Dataset({"x": x, "y": y}, clients=np.repeat(np.arange(self.clients), sizes))
