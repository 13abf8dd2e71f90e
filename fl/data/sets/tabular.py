"""Tables of the UCI repository, from tabular/*.npz below the data folder.

    adult           48,842 x 108   income above 50,000 $ (2)     Kohavi, Becker 1996        test: the 16,281 of its test file
    heart_disease      920 x 29    heart disease (2)             Detrano et al. 1989        clients by nature: 4 hospitals
    letter          20,000 x 16    26 letters                    Frey, Slate 1991           test: the last 4,000
    credit_default  30,000 x 23    default of card holders (2)   Yeh, Lien 2009             test: a fifth, drawn

Numbers are standardised to mean 0 and variance 1 over all training rows (in a federation: by sums that clients may send), a
constant column to 0; no test row enters. Categories are one column each, 0 or 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.data.dataset import Arrays, Dataset
from fl.data.folder import find
from fl.registry import register
from fl.tensors import random


def standardised(x: np.ndarray, train: np.ndarray) -> np.ndarray:
    """float32 (N, D): (x - mean) / deviation, both over the rows where `train` (N,) is true."""
    x = x.astype(np.float64)
    deviation = x[train].std(0)
    return ((x - x[train].mean(0)) / np.where(deviation > 0, deviation, 1)).astype(np.float32)


def one_hot(values: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """float32 (N, len(kinds)): which of `kinds` a value is; all zeros if none."""
    return (values[:, None] == kinds).astype(np.float32)


def _arrays(name: str) -> Arrays:
    with np.load(find("tabular", f"{name}.npz")) as raw:
        return {key: raw[key] for key in raw}


def _divided(x: np.ndarray, y: np.ndarray, train: np.ndarray) -> Dataset:
    """The rows where `train` is true, and the others as the server's test set."""
    return Dataset({"x": x[train], "y": y[train]}, {"x": x[~train], "y": y[~train]})


def _learnt(test: float, groups: np.ndarray, seed: int, name: str) -> np.ndarray:
    """(N,) bool, false for floor(test n) rows drawn from each group of n."""
    learnt = np.ones(len(groups), bool)
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        learnt[rows[random.permutation(len(rows), seed, name, int(group))[: int(test * len(rows))]]] = False
    return learnt


def _check_fraction(test: float) -> None:
    if not 0 < test < 1:
        raise ValueError(f"test: {test} is not in (0, 1)")


@register("data", "adult")
@dataclass(frozen=True, kw_only=True)
class Adult:
    """Census income: 6 numbers and 8 attributes of 102 categories together, '?' a category of its own."""

    def load(self) -> Dataset:
        raw = _arrays("adult")
        train = np.arange(len(raw["y"])) < int(raw["n_train"])
        kinds = [len(raw[f"values_{name}"]) for name in raw["cat_names"]]
        categories = [one_hot(raw["x_cat"][:, i], np.arange(k)) for i, k in enumerate(kinds)]
        return _divided(np.concatenate([standardised(raw["x_num"], train), *categories], 1), raw["y"], train)


HEART_CATEGORIES = {"cp": (1, 2, 3, 4), "restecg": (0, 1, 2), "slope": (1, 2, 3), "thal": (3, 6, 7)}


@register("data", "heart_disease")
@dataclass(frozen=True, kw_only=True)
class HeartDisease:
    """Heart disease in four hospitals: 0 Cleveland, 1 Hungary, 2 Switzerland, 3 Long Beach, the clients by nature.

    Of each hospital's rows floor(test n), drawn by `seed`, are
    its own test rows; together they are the server's test set too.

    Columns: 9 numbers, what is missing replaced by the median of the training rows; for the 7 of them that anyone lacks 0 or 1, is it
    missing; 4 attributes of 13 categories together, all 0 where missing. A cholesterol or blood pressure of 0 is missing."""

    test: float = 0.2
    seed: int = 0

    def __post_init__(self):
        _check_fraction(self.test)

    def load(self) -> Dataset:
        raw = _arrays("heart_disease")
        learnt = _learnt(self.test, raw["center"], self.seed, "heart_disease")
        columns = dict(zip(raw["feature_names"].tolist(), raw["x"].astype(np.float64).T))
        for name in ("trestbps", "chol"):
            columns[name] = np.where(columns[name] == 0, np.nan, columns[name])
        categories = [one_hot(columns.pop(name), np.array(kinds)) for name, kinds in HEART_CATEGORIES.items()]
        numbers = np.stack(list(columns.values()), 1)
        missing = np.isnan(numbers)
        numbers = np.where(missing, np.nanmedian(numbers[learnt], 0), numbers)
        x = np.concatenate([standardised(numbers, learnt), missing[:, missing.any(0)], *categories], 1).astype(
            np.float32
        )
        arrays = {"x": x, "y": raw["y"]}
        asked = {name: array[~learnt] for name, array in arrays.items()}
        return Dataset(arrays, asked, raw["center"].astype(np.int64), held=~learnt)


@register("data", "letter")
@dataclass(frozen=True, kw_only=True)
class Letter:
    """Letter recognition: 16 numbers of an image, classes 0 A .. 25 Z; the usual split, the first 16,000 to train."""

    def load(self) -> Dataset:
        raw = _arrays("letter")
        train = np.arange(len(raw["y"])) < 16000
        return _divided(standardised(raw["x"], train), raw["y"], train)


@register("data", "credit_default")
@dataclass(frozen=True, kw_only=True)
class CreditDefault:
    """Default of card holders in Taiwan, by 23 numbers (sex, education and marriage as their codes).

    They are in the order of the file, so that `parties` says whose a column is. floor(test N) rows drawn by `seed` are the server's test set."""

    test: float = 0.2
    seed: int = 0

    def __post_init__(self):
        _check_fraction(self.test)

    def load(self) -> Dataset:
        raw = _arrays("credit_default")
        train = _learnt(self.test, np.zeros(len(raw["y"]), np.int64), self.seed, "credit_default")
        return _divided(standardised(raw["x"], train), raw["y"], train)


def parties() -> dict[str, np.ndarray]:
    """The columns of credit_default in FATE's vertical example: `guest` (holds the labels; 13) and `host` (10)."""
    whose = _arrays("credit_default")["fate_party"]
    return {name: np.flatnonzero(whose == party) for party, name in enumerate(("guest", "host"))}
