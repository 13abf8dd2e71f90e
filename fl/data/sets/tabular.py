"""Tables of the UCI repository, from tabular/*.npz in the data folder.

    adult           48,842 x 108   income above 50,000 $ (2)     Kohavi, Becker 1996        test: its test file, 16,281
    heart_disease      920 x 29    heart disease (2)             Detrano et al. 1989        natural owners: 4 hospitals
    letter          20,000 x 16    26 letters                    Frey, Slate 1991           test: the last 4,000
    credit_default  30,000 x 23    default of card holders (2)   Yeh, Lien 2009             test: a random fifth

Numbers are standardised to mean 0 and variance 1 over all training rows; in a federation, clients could send the sums.
A constant column becomes 0. Test rows do not enter. Each category is one column of 0 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.checks import within
from fl.data.archives import read_npz
from fl.data.dataset import Arrays, Dataset, Loader
from fl.data.folder import find
from fl.registry import register
from fl.tensors import random


def standardised(x: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Return float32 (N, D): (x - mean) / standard deviation, both over the rows where `train` (N,) is true."""
    x = x.astype(np.float64)
    deviation = x[train].std(0)
    return ((x - x[train].mean(0)) / np.where(deviation > 0, deviation, 1)).astype(np.float32)


def one_hot(values: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Return float32 (N, len(kinds)): 1 where a value equals the kind, else 0.

    >>> one_hot(np.array([2, 5]), np.array([1, 2])).tolist()
    [[0.0, 1.0], [0.0, 0.0]]
    """
    return (values[:, None] == kinds).astype(np.float32)


def _arrays(name: str) -> Arrays:
    return read_npz(find("tabular", f"{name}.npz"), key="data")


def _divided(x: np.ndarray, y: np.ndarray, train: np.ndarray) -> Dataset:
    """Use the rows where `train` is true for training, and the others as the server's test set."""
    return Dataset({"x": x[train], "y": y[train]}, {"x": x[~train], "y": y[~train]})


def _draw_train_rows(test: float, groups: np.ndarray, seed: int, name: str) -> np.ndarray:
    """Return (N,) bool, false for floor(test n) random rows of each group of n."""
    train = np.ones(len(groups), bool)
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        train[rows[random.permutation(len(rows), seed, name, int(group))[: int(test * len(rows))]]] = False
    return train


@register("data", "adult")
@dataclass(frozen=True, kw_only=True)
class Adult(Loader):
    """Census income: 6 numbers, and 8 attributes with 102 categories in all; '?' is a category too."""

    def load(self) -> Dataset:
        raw = _arrays("adult")
        train = np.arange(len(raw["y"])) < int(raw["n_train"])
        kinds = [len(raw[f"values_{name}"]) for name in raw["cat_names"]]
        categories = [one_hot(raw["x_cat"][:, i], np.arange(k)) for i, k in enumerate(kinds)]
        return _divided(np.concatenate([standardised(raw["x_num"], train), *categories], 1), raw["y"], train)


HEART_CATEGORIES = {"cp": (1, 2, 3, 4), "restecg": (0, 1, 2), "slope": (1, 2, 3), "thal": (3, 6, 7)}


@register("data", "heart_disease")
@dataclass(frozen=True, kw_only=True)
class HeartDisease(Loader):
    """Heart disease in four hospitals, the natural owners: 0 Cleveland, 1 Hungary, 2 Switzerland, 3 Long Beach.

    Of each hospital's n rows, floor(test n) random rows are its own test rows; together they are also the server's
    test set.

    Columns: 9 numbers, where missing values are replaced by the median of the training rows; for the 7 numbers with
    missing values a column that is 1 where the value is missing; 4 attributes with 13 categories in all, 0 where
    missing. A cholesterol or blood pressure of 0 counts as missing.

    Args:
        test: Fraction of each hospital's rows for testing; in (0, 1).
        seed: Seed of the random choice of test rows.
    """

    test: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        within("(0, 1)", test=self.test)

    def load(self) -> Dataset:
        raw = _arrays("heart_disease")
        train = _draw_train_rows(self.test, raw["center"], self.seed, "heart_disease")
        columns = dict(zip(raw["feature_names"].tolist(), raw["x"].astype(np.float64).T))
        for name in ("trestbps", "chol"):
            columns[name] = np.where(columns[name] == 0, np.nan, columns[name])
        categories = [one_hot(columns.pop(name), np.array(kinds)) for name, kinds in HEART_CATEGORIES.items()]
        numbers = np.stack(list(columns.values()), 1)
        missing = np.isnan(numbers)
        numbers = np.where(missing, np.nanmedian(numbers[train], 0), numbers)
        x = np.concatenate([standardised(numbers, train), missing[:, missing.any(0)], *categories], 1).astype(
            np.float32
        )
        arrays = {"x": x, "y": raw["y"]}
        test = {name: array[~train] for name, array in arrays.items()}
        return Dataset(arrays, test, raw["center"].astype(np.int64), held=~train)


@register("data", "letter")
@dataclass(frozen=True, kw_only=True)
class Letter(Loader):
    """Letter recognition: 16 numbers per image, classes 0 (A) to 25 (Z). The first four fifths are for training.

    Args:
        rows: Number of rows that are used, the first ones of the file; 5 to 20,000.
    """

    rows: int = 20_000

    def __post_init__(self) -> None:
        within("[5, 20000]", rows=self.rows)

    def load(self) -> Dataset:
        raw = _arrays("letter")
        x, y = raw["x"][: self.rows], raw["y"][: self.rows]
        train = np.arange(self.rows) < self.rows * 4 // 5
        return _divided(standardised(x, train), y, train)


@register("data", "credit_default")
@dataclass(frozen=True, kw_only=True)
class CreditDefault(Loader):
    """Default of credit-card holders in Taiwan, from 23 numbers (sex, education and marriage as their codes).

    The columns keep the order of the file; `parties` returns their owners in a vertical federation.

    Args:
        test: Fraction of the rows for the server's test set; in (0, 1).
        seed: Seed of the random choice of test rows.
    """

    test: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        within("(0, 1)", test=self.test)

    def load(self) -> Dataset:
        raw = _arrays("credit_default")
        train = _draw_train_rows(self.test, np.zeros(len(raw["y"]), np.int64), self.seed, "credit_default")
        return _divided(standardised(raw["x"], train), raw["y"], train)


def parties() -> dict[str, np.ndarray]:
    """Return the columns of each party in FATE's vertical example: `guest` (13 columns and the labels), `host` (10)."""
    owner = _arrays("credit_default")["fate_party"]
    return {name: np.flatnonzero(owner == party) for party, name in enumerate(("guest", "host"))}
