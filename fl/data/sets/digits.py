"""Handwritten digits of UCI/scikit-learn: 1,797 images of 1 x 8 x 8 in [0, 1], 10 classes. No download is needed."""

from __future__ import annotations

import functools
import gzip
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

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
        within("[0, 1)", test=self.test)
        table = _table()
        images, target = table[:, :-1].reshape(-1, 1, 8, 8), table[:, -1]
        arrays: dict[str, np.ndarray] = {"x": (images / 16.0).astype(np.float32), "y": target.astype(np.int64)}
        words, held_out = random.hash64(self.seed, "digits", np.arange(len(target))), np.zeros(len(target), bool)
        for label in range(10):
            rows = np.flatnonzero(arrays["y"] == label)
            held_out[rows[np.argsort(words[rows])][: round(self.test * len(rows))]] = True
        train, test = ({n: a[part] for n, a in arrays.items()} for part in (~held_out, held_out))
        return Dataset(train, test if self.test else None)


@functools.cache
def _table() -> np.ndarray:
    """Read the file of scikit-learn: 64 pixels in 0..16 and the label of each image, (1797, 65).

    `sklearn.datasets.load_digits` reads it in the same way, but importing scikit-learn takes more than a second.
    """
    package = find_spec("sklearn")
    assert package is not None and package.submodule_search_locations
    with gzip.open(Path(package.submodule_search_locations[0]) / "datasets/data/digits.csv.gz", "rt") as file:
        return np.loadtxt(file, delimiter=",")
