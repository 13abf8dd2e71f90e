"""The data of a run: a part that loads it, and what is done to it before and while anything learns.

load -> long_tail: fewer rows of later classes -> normalise: x <- (x - mean) / sd        in training: augment, batch by batch
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fl.data.augment import Augment
from fl.data.dataset import Dataset, as_dataset
from fl.data.partition import coded, places
from fl.tensors import random


@dataclass(frozen=True, kw_only=True)
class Standard:
    """What features are normalised with: a number for each channel (or feature), or one for all."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self):
        if len(self.mean) != len(self.std) or any(s <= 0 for s in self.std):
            raise ValueError(f"std: {self.std} are not {len(self.mean)} positive numbers, one for each mean")


@dataclass(frozen=True, kw_only=True)
class Data:
    """`part` has load() -> Dataset, or is a Dataset. `long_tail`: how many times the rows of the last class the first has in
    training. `normalise`: by the training rows' own mean and deviation (true), or by given ones. `augment`: random changes of
    training batches."""

    part: Any
    long_tail: float | None = None
    normalise: bool | Standard = False
    augment: tuple[Augment, ...] = ()

    def __post_init__(self):
        if self.long_tail is not None and self.long_tail < 1:
            raise ValueError(
                f"long_tail: {self.long_tail} is less than 1; it is the first class's rows over the last's"
            )

    def load(self) -> Dataset:
        dataset = as_dataset(self.part.load() if hasattr(self.part, "load") else self.part)
        for change in self.augment:
            change.check(dataset.train["x"].shape[1:])
        if self.long_tail is not None:
            dataset = _taken(dataset, long_tailed(dataset.labels, self.long_tail))
        if self.normalise is not False:
            standard = None if self.normalise is True else self.normalise
            dataset = normalised(dataset, standard)
        return dataset


def long_tailed(labels: np.ndarray, factor: float) -> np.ndarray:
    """Rows (ascending) of which class k of K keeps floor(n factor^(-k / (K - 1))), n the smallest class's number: a random choice
    that is always the same. Cui, Jia, Lin, Song, Belongie 2019, arXiv:1901.05555 (there with n = 5,000 for CIFAR-10)."""
    classes, codes = coded(labels)
    if len(classes) == 1:
        return np.arange(len(labels))
    most = np.bincount(codes).min()
    keep = np.maximum((most * factor ** (-np.arange(len(classes)) / (len(classes) - 1)) + 1e-9).astype(np.int64), 1)
    return np.flatnonzero(places(codes, random.hash64("long_tail", np.arange(len(labels)))) < keep[codes])


def normalised(dataset: Dataset, standard: Standard | None = None) -> Dataset:
    """x <- (x - mean) / sd in all parts, channel by channel of images (C, H, W), feature by feature of vectors; by default with
    the training rows' mean and deviation, a deviation of 0 taken as 1."""
    x = dataset.train["x"]
    if x.dtype != np.float32 or x.ndim not in (2, 4):
        raise ValueError(f"normalise: features are {x.dtype} {x.shape[1:]}; it is for float vectors and images")
    shape = (-1, 1, 1) if x.ndim == 4 else (-1,)
    if standard is None:
        axes = (0, 2, 3) if x.ndim == 4 else (0,)
        mean, std = x.mean(axes, dtype=np.float64), x.std(axes, dtype=np.float64)
        std[std == 0] = 1
    else:
        mean, std = (_each(values, x.shape[1]) for values in (standard.mean, standard.std))
    shift, scale = (values.astype(np.float32).reshape(shape) for values in (mean, 1 / std))

    def done(part):
        return None if part is None else {**part, "x": (part["x"] - shift) * scale}

    return replace(dataset, train=done(dataset.train), test=done(dataset.test), server=done(dataset.server))


def _each(values: Sequence[float], channels: int) -> np.ndarray:
    if len(values) not in (1, channels):
        raise ValueError(f"normalise: {len(values)} numbers for {channels} channels; give one, or one for each")
    return np.broadcast_to(np.asarray(values, np.float64), channels)


def _taken(dataset: Dataset, rows: np.ndarray) -> Dataset:
    clients, held = (None if array is None else array[rows] for array in (dataset.clients, dataset.held))
    return replace(dataset, train={n: array[rows] for n, array in dataset.train.items()}, clients=clients, held=held)
