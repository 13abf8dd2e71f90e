"""Omniglot: 1,623 handwritten characters of 50 alphabets, each drawn by 20 people; 28 x 28 pixels, ink 1, paper 0.

    server   the base classes, from the 30 background alphabets              labels 0 .. B-1
    train    the field classes, from the 20 evaluation alphabets             labels B .. B+F-1
    test     the other drawings of these classes

Lake, Salakhutdinov, Tenenbaum 2015, doi:10.1126/science.aab3050. `train_per_class` random drawings of the 20 drawings
per class are used for training. The natural owner of a drawing is (alphabet, drawer), with the id alphabet * 20 +
drawer; the same drawer number in two alphabets is not the same person.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fl.data.archives import read_npz
from fl.data.dataset import Arrays, Dataset, Loader
from fl.data.folder import find
from fl.registry import register
from fl.tensors import random

SMALL1 = (5, 11, 14, 20, 21)  # Balinese, Early Aramaic, Greek, Korean, Latin: 136 characters
DRAWINGS = 20


@register("data", "omniglot")
@dataclass(frozen=True, kw_only=True)
class Omniglot(Loader):
    """Omniglot with base classes on the server and field classes on the clients.

    Args:
        base: Base classes: `background` (all 964), `small1` (the 136 of Balinese, Early Aramaic, Greek, Korean and
            Latin), or a number of random background classes.
        field: Number of field classes, drawn from the 659 evaluation classes.
        train_per_class: Drawings per class for training, from 1 to 19; the others are for testing.
        seed: Seed of the random choices.
    """

    base: Literal["background", "small1"] | int = "small1"
    field: int = 100
    train_per_class: int = 15
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.train_per_class < DRAWINGS:
            raise ValueError(
                f"train_per_class: {self.train_per_class} is not in 1..{DRAWINGS - 1}; a class has {DRAWINGS} drawings"
            )

    def load(self) -> Dataset:
        arrays = ("x", "alphabet", "character", "drawer", "evaluation")
        raw = read_npz(find("omniglot", "omniglot28.npz"), *arrays, key="data")
        background = np.unique(raw["character"][~raw["evaluation"]])
        base, field = self._base(raw, background), self._drawn("field", np.unique(raw["character"][raw["evaluation"]]))
        classes = np.concatenate([base, field])
        names = np.full(int(raw["character"].max()) + 1, -1)
        names[classes] = np.arange(len(classes))
        y = names[raw["character"]]
        learnt, in_field = self._split(raw["character"]), y >= len(base)
        clients = raw["alphabet"].astype(np.int64) * DRAWINGS + raw["drawer"]

        def part(rows: np.ndarray) -> Arrays:
            return {"x": raw["x"][rows, None].astype(np.float32) / 255, "y": y[rows]}

        train = np.flatnonzero(in_field & learnt)
        server = part(np.flatnonzero((y >= 0) & ~in_field & learnt)) if len(base) else None
        return Dataset(part(train), part(np.flatnonzero((y >= 0) & ~learnt)), clients[train], server)

    def _base(self, raw: Arrays, background: np.ndarray) -> np.ndarray:
        if self.base == "background":
            return background
        if self.base == "small1":
            return np.unique(raw["character"][np.isin(raw["alphabet"], SMALL1)])
        return self._drawn("base", background)

    def _drawn(self, name: str, classes: np.ndarray) -> np.ndarray:
        """Draw as many of `classes` as the attribute `name` says, ascending."""
        count, least = getattr(self, name), int(name == "field")
        if not least <= count <= len(classes):
            raise ValueError(f"{name}: {count} is not in {least}..{len(classes)}, the number of classes")
        return np.sort(classes[random.permutation(len(classes), self.seed, "omniglot", name)[:count]])

    def _split(self, character: np.ndarray) -> np.ndarray:
        """Return (N,) bool: the drawings used for training."""
        words = random.hash64(self.seed, "omniglot", "split", np.arange(len(character)))
        order = np.lexsort((words, character))  # the 20 rows of a character together, in random order
        learnt = np.empty(len(character), bool)
        learnt[order] = np.arange(len(character)) % DRAWINGS < self.train_per_class
        return learnt
