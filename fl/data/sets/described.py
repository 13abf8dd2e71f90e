"""Synthetic features of samples and of their classes' descriptions, for methods with open vocabularies.

    text_c = n_c / |n_c|,    x = u / |u|,  u = text_y + noise n / sqrt(D)      n_c, n standard normal in D dimensions

The last `held_out` classes belong to no client; their rows are the server's test set. The other classes are dealt out
to `clients` natural owners, as those of `embedded` are (fl/data/sets/embedded.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.checks import at_least, not_negative
from fl.data.dataset import Arrays, Dataset, Loader
from fl.registry import register
from fl.tensors import random


@register("data", "described")
@dataclass(frozen=True, kw_only=True)
class Described(Loader):
    """Random features around a random description of each class: arrays x (N, D), text (N, D) and y.

    Args:
        dim: Dimensions D, positive.
        classes: Number of classes that clients have, at least `clients`.
        held_out: Number of classes that belong to no client, at least 1.
        clients: Number of natural owners, positive.
        per_class: Number of rows of each class, positive.
        noise: Norm of the noise relative to the description, at least 0.
        seed: Seed of all draws.
    """

    dim: int = 16
    classes: int = 12
    held_out: int = 8
    clients: int = 4
    per_class: int = 20
    noise: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(1, dim=self.dim, held_out=self.held_out, clients=self.clients, per_class=self.per_class)
        at_least(self.clients, classes=self.classes, hint="each client needs a class")
        not_negative(noise=self.noise)

    def load(self) -> Dataset:
        draw, count = random.numpy_generator(self.seed, "described"), self.classes + self.held_out
        texts = _unit(draw.standard_normal((count, self.dim)))
        y = np.repeat(np.arange(count), self.per_class)
        noise = self.noise / np.sqrt(self.dim) * draw.standard_normal((len(y), self.dim))
        arrays: Arrays = {"x": _unit(texts[y] + noise), "text": texts[y].astype(np.float32), "y": y}
        ours = y < self.classes
        train, test = ({name: array[rows] for name, array in arrays.items()} for rows in (ours, ~ours))
        return Dataset(train, test, y[ours] % self.clients)


def _unit(rows: np.ndarray) -> np.ndarray:
    """Return rows divided by their norms, float32."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
