"""Inputs in any amount, for benchmarks.    x ~ N(0, I), or ids;   y = argmax(T x) for one random linear teacher T"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from fl.data.dataset import Dataset
from fl.registry import register
from fl.tensors import random

_BLOCK = 8192  # rows labelled at a time


@dataclass(frozen=True, kw_only=True)
class LogNormal:
    """Whole numbers of a log-normal distribution: `lognormal` is the deviation of the logarithm, `mean` the mean before
    rounding down and bounding to low..high."""

    lognormal: float
    mean: float
    low: int = 1
    high: int | None = None

    def draw(self, generator: np.random.Generator, count: int) -> np.ndarray:
        if self.lognormal < 0 or self.mean <= 0:
            raise ValueError(f"lognormal: {self.lognormal} is negative, or mean: {self.mean} not positive")
        drawn = generator.lognormal(math.log(self.mean) - self.lognormal**2 / 2, self.lognormal, count)
        return np.clip(drawn, self.low, self.high).astype(np.int64)


@register("data", "noise")
@dataclass(frozen=True, kw_only=True)
class RandomData:
    """Inputs in any amount, for benchmarks: standard-normal, or uniform ids 0..vocabulary-1.

    `samples` of each client: a number, or their distribution, e.g. {lognormal: 1, mean: 20, low: 5, high: 200}.
    """

    shape: tuple[int, ...] = (60,)
    classes: int = 10
    clients: int = 100
    samples: int | LogNormal = 20
    vocabulary: int | None = None
    seed: int = 0

    def load(self) -> Dataset:
        for name in ("classes", "clients", "vocabulary"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not positive")
        draw = random.numpy_generator(self.seed, "noise")
        if isinstance(self.samples, LogNormal):
            sizes = self.samples.draw(draw, self.clients)
        else:
            sizes = np.full(self.clients, self.samples)
        if sizes.min() < 0 or not sizes.any():
            raise ValueError(f"samples: {self.samples} leaves nothing to train on")
        shape, source = (int(sizes.sum()), *self.shape), random.torch_generator(self.seed, "noise")
        if self.vocabulary is None:  # torch draws normals three times faster than NumPy
            x = torch.empty(shape).normal_(generator=source).numpy()
        else:
            x = torch.randint(self.vocabulary, shape, generator=source, dtype=torch.int32).numpy()
        teacher = draw.standard_normal((math.prod(self.shape), self.classes))
        y = np.empty(len(x), np.int64)
        for a in range(0, len(x), _BLOCK):  # in float64: in float32 the last bits of a product would decide near ties
            y[a : a + _BLOCK] = (x[a : a + _BLOCK].reshape(-1, len(teacher)).astype(np.float64) @ teacher).argmax(1)
        return Dataset({"x": x, "y": y}, clients=np.repeat(np.arange(self.clients), sizes))
