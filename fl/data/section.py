"""The section `data:` of a configuration: a data set and its preprocessing.

load -> long_tail: fewer rows of later classes -> normalise: x <- (x - mean) / sd        in training: augment each batch
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from fl.checks import at_least
from fl.data.augment import Augment
from fl.data.dataset import Arrays, Dataset
from fl.data.forms import GivenData, as_dataset, is_data_set
from fl.data.grouping import class_codes, rank_in_group
from fl.tensors import random


@dataclass(frozen=True, kw_only=True)
class Standard:
    """Mean and standard deviation for normalisation, one number per channel (or feature), or one for all.

    Args:
        mean: means in the units of x: one for each channel (or feature), or one for all.
        std: standard deviations in the units of x, positive: as many as means.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or any(s <= 0 for s in self.std):
            raise ValueError(f"std: {self.std} are not {len(self.mean)} positive numbers, one per mean")


@dataclass(frozen=True, kw_only=True)
class Data:
    """A data set and its preprocessing.

    Args:
        part: An object with load() -> Dataset, or data in one of the forms of fl/data/forms.py.
        long_tail: ratio of the training rows of the first class to those of the last class, 1 or more; classes between
            them decrease geometrically. None: all rows stay.
        normalise: x <- (x - mean) / std, for each channel or feature. True: mean and std are those of the training
            rows; or {mean: [...], std: [...]}. False: x stays as it is loaded.
        augment: random changes of training batches, in this order. Methods with a weak and a strong chain use it as the
            weak one.
        strong: the strong chain of these methods, in this order. Other methods ignore it.
    """

    part: Any
    long_tail: float | None = None
    normalise: bool | Standard = False
    augment: tuple[Augment, ...] = ()
    strong: tuple[Augment, ...] = ()

    def __post_init__(self) -> None:
        at_least(1, long_tail=self.long_tail, hint="it is the ratio of the first class's rows to the last class's rows")

    @cached_property
    def _source(self) -> Any:
        """The part, if it loads data; else a part for the data that a user's function returned."""
        loads = hasattr(self.part, "load") and not is_data_set(self.part)
        return self.part if loads else GivenData(self.part)

    def load(self, check: Callable[[Dataset], Dataset] | None = None) -> Dataset:
        """Load the data set and preprocess it. `check` is applied before preprocessing, to the rows as loaded."""
        dataset = as_dataset(self._source.load())
        if dataset.source is not None and self.normalise is not False:
            raise ValueError(
                "normalise: training draws the rows again at each access; normalise in the data set instead"
            )
        if check is not None:
            dataset = check(dataset)
        for change in (*self.augment, *self.strong):
            change.check(dataset.train["x"].shape[1:])
        if self.long_tail is not None:
            dataset = _select_rows(dataset, long_tailed(dataset.labels, self.long_tail))
        if self.normalise is not False:
            standard = None if self.normalise is True else self.normalise
            dataset = normalised(dataset, standard)
        return dataset


def long_tailed(labels: np.ndarray, factor: float) -> np.ndarray:
    """Return rows, ascending, in which class k of K has floor(n factor^(-k / (K - 1))) rows.

    n is the size of the smallest class. The random choice is always the same. Cui, Jia, Lin, Song, Belongie 2019,
    arXiv:1901.05555 (n = 5,000 for CIFAR-10).

    >>> labels = np.repeat([0, 1, 2], 100)
    >>> np.bincount(labels[long_tailed(labels, 100.0)]).tolist()
    [100, 10, 1]
    """
    classes, codes = class_codes(labels)
    if len(classes) == 1:
        return np.arange(len(labels))
    most = np.bincount(codes).min()
    keep = np.maximum((most * factor ** (-np.arange(len(classes)) / (len(classes) - 1)) + 1e-9).astype(np.int64), 1)
    return np.flatnonzero(rank_in_group(codes, random.hash64("long_tail", np.arange(len(labels)))) < keep[codes])


def normalised(dataset: Dataset, standard: Standard | None = None) -> Dataset:
    """Normalise x <- (x - mean) / sd in all parts, per channel of images (C, H, W) or per feature of vectors.

    The default uses the mean and the standard deviation of the training rows; a standard deviation of 0 counts as 1.
    """
    x = dataset.train["x"]
    if x.dtype != np.float32 or x.ndim not in (2, 4):
        raise ValueError(
            f"normalise: features are {x.dtype} {x.shape[1:]}; only float vectors and images can be normalised"
        )
    shape = (-1, 1, 1) if x.ndim == 4 else (-1,)
    if standard is None:
        axes = (0, 2, 3) if x.ndim == 4 else (0,)
        mean, std = x.mean(axes, dtype=np.float64), x.std(axes, dtype=np.float64)
        std[std == 0] = 1
    else:
        mean, std = (_each(values, x.shape[1]) for values in (standard.mean, standard.std))
    shift, scale = (values.astype(np.float32).reshape(shape) for values in (mean, 1 / std))

    def normalise(part: Arrays) -> Arrays:
        return {**part, "x": (part["x"] - shift) * scale}

    others = {name: part and normalise(part) for name, part in (("test", dataset.test), ("server", dataset.server))}
    return replace(dataset, train=normalise(dataset.train), test=others["test"], server=others["server"])


def _each(values: Sequence[float], channels: int) -> np.ndarray:
    if len(values) not in (1, channels):
        raise ValueError(
            f"normalise: {len(values)} numbers for {channels} channels; give one number, or one per channel"
        )
    return np.broadcast_to(np.asarray(values, np.float64), channels)


def _select_rows(dataset: Dataset, rows: np.ndarray) -> Dataset:
    clients, held = (None if array is None else array[rows] for array in (dataset.clients, dataset.held))
    train = {n: array[rows] for n, array in dataset.train.items()}
    source = None if dataset.source is None else dataset.source.select(rows)
    return replace(dataset, train=train, clients=clients, held=held, source=source)
