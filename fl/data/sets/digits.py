"""Handwritten digits of UCI/scikit-learn: 1,797 images of 1 x 8 x 8 in [0, 1], 10 classes. No download is needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.checks import within
from fl.data.dataset import Dataset, Loader
from fl.registry import register
from fl.tensors import random


@register("data", "digits")
@dataclass(frozen=True, kw_only=True)
class Digits(Loader):
    """1,797 handwritten digits, 1 x 8 x 8, bundled with scikit-learn.

    Args:
        test: Fraction of each class, rounded, that the server holds out for testing; in [0, 1).
        seed: Seed of the random choice of test rows.
    """

    test: float = 0.2
    seed: int = 0

    def load(self) -> Dataset:
        from sklearn.datasets import load_digits  # importing it takes a second

        within("[0, 1)", test=self.test)
        raw = load_digits()
        arrays = {"x": (raw.images / 16.0).astype(np.float32)[:, None], "y": raw.target.astype(np.int64)}
        words, held_out = (
            random.hash64(self.seed, "digits", np.arange(len(raw.target))),
            np.zeros(len(raw.target), bool),
        )
        for label in range(10):
            rows = np.flatnonzero(arrays["y"] == label)
            held_out[rows[np.argsort(words[rows])][: round(self.test * len(rows))]] = True
        train, test = ({n: a[part] for n, a in arrays.items()} for part in (~held_out, held_out))
        return Dataset(train, test if self.test else None)
