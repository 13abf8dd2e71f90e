"""Several labels for the samples of another data set, for `task: multitask`.

    label        y
    parity       y mod 2
    at_least     1 if y >= value
    top_bottom   1 if the mean of the upper half of an image is above that of the lower half (vectors: first and
                 second half of the features)
    random       a random class of the row, which nobody can learn

The label of the task NAME is the array `y_NAME`. The array `y` stays, so that partitions can use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from fl.checks import at_least, one_of
from fl.data.checking import require_labels, whole_numbers
from fl.data.dataset import Arrays, Dataset, Loader
from fl.data.forms import as_dataset
from fl.data.sets.digits import Digits
from fl.registry import register
from fl.tensors import random

KINDS = ("label", "parity", "at_least", "top_bottom", "random")


@dataclass(frozen=True, kw_only=True)
class Target:
    """A label that is computed from a row.

    Args:
        kind: label, parity, at_least, top_bottom or random; see the module.
        value: smallest label of class 1, for at_least.
        classes: number of classes, at least 2, for random.
        seed: seed of the classes, for random.
    """

    kind: Literal["label", "parity", "at_least", "top_bottom", "random"]
    value: int = 5
    classes: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        one_of(KINDS, kind=self.kind)
        at_least(2, classes=self.classes)

    def of(self, arrays: Arrays, where: str, name: str) -> np.ndarray:
        """Return the label of each row, int64 (N,).

        Args:
            arrays: `x` and `y` of a part of the data.
            where: the part: train, test or server.
            name: name of the task.
        """
        x = arrays["x"]
        if self.kind == "random":
            words = random.hash64(self.seed, "target", where, name, np.arange(len(x)))
            return (words % np.uint64(self.classes)).astype(np.int64)
        if self.kind == "top_bottom":
            return brighter_above(x)
        y = require_labels(arrays, where)
        assert y is not None
        y = whole_numbers(y.reshape(-1) if y.ndim == 2 and y.shape[1] == 1 else y, where, "they are numbers of classes")
        return y if self.kind == "label" else y % 2 if self.kind == "parity" else (y >= self.value).astype(np.int64)


def brighter_above(x: np.ndarray) -> np.ndarray:
    """Return 1 for rows whose upper half has a larger mean than the lower half, else 0; int64 (N,).

    The middle line of an odd number of lines belongs to neither half.

    Args:
        x: images (N, C, H, W) or (N, H, W), or vectors (N, D).

    >>> brighter_above(np.array([[[1.0, 1.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])).tolist()
    [1, 0]
    """
    lines = np.moveaxis(x, -2 if x.ndim > 2 else -1, 1).reshape(len(x), x.shape[-2 if x.ndim > 2 else -1], -1)
    half = lines.shape[1] // 2
    upper, lower = lines[:, :half], lines[:, lines.shape[1] - half :]
    return (upper.mean((1, 2), dtype=np.float64) > lower.mean((1, 2), dtype=np.float64)).astype(np.int64)


@register("data", "tasks")
@dataclass(frozen=True, kw_only=True)
class Tasks(Loader):
    """The samples of another data set, with a label for each of several tasks.

    Args:
        of: the data set.
        targets: name -> label, at least one.
    """

    of: Loader
    targets: dict[str, Target]

    example_config: ClassVar[Mapping[str, Any]] = {
        "data.of": Digits(),
        "data.targets": {"parity": Target(kind="parity"), "noise": Target(kind="random")},
    }

    def __post_init__(self) -> None:
        if not self.targets:
            raise ValueError("targets: there are none; name at least one, such as {parity: {kind: parity}}")

    def load(self) -> Dataset:
        of = as_dataset(self.of.load())
        if of.source is not None:
            raise ValueError("of: training reads the rows of this data set again at each access; store them")
        return of.mapped(self._with_labels)

    def _with_labels(self, part: str, arrays: Arrays) -> Arrays:
        if part == "server" and "y" not in arrays:
            return arrays
        return arrays | {f"y_{name}": target.of(arrays, part, name) for name, target in self.targets.items()}
