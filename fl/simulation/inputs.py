"""Numbers in `x` that the model does not take, such as ids beyond the vocabulary of an embedding.

They are found by calls of the model, wherever in it and however it looks ids up. Two samples hold the smallest and the
largest number of each column; if the model takes both, it takes every row. Only a row of the data that fails is
refused.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fl.data.checking import column_extremes, refuse
from fl.data.dataset import Dataset

Takes = Callable[[np.ndarray], bool]
"""Whether the model takes samples (B, ...)."""


def whole(x: np.ndarray) -> bool:
    """Return whether all entries are whole numbers, so that they may be ids.

    >>> whole(np.array([1.0, 2.0])), whole(np.array([0.5])), whole(np.array([True]))
    (True, False, False)
    """
    return x.dtype.kind in "iu" or (x.dtype.kind == "f" and bool((x == np.floor(x)).all()))


def require_known_numbers(dataset: Dataset, sample: np.ndarray, takes: Takes, hint: Callable[[], str]) -> None:
    """Require that the model takes the numbers of each part.

    Args:
        dataset: the data; `x` holds whole numbers.
        sample: one row of `x`.
        takes: calls the model.
        hint: the model's last error, and the way out.

    Raises:
        ValueError: the model fails for a row, because of the size of one of its numbers.
    """
    for part, arrays in dataset.parts().items():
        x = arrays["x"]
        extremes = column_extremes(x)
        if takes(np.stack(extremes)):
            continue
        base = next((row for row in (sample, sample.clip(0, 1), 0 * sample) if takes(_twice(row, x))), None)
        if base is None:
            continue  # it fails for another reason
        for extreme, sign, side in zip(extremes, (-1, 1), ("below", "above")):
            found = _limit(lambda row: takes(_twice(row, x)), base.reshape(-1), extreme.reshape(-1))
            if found is None:
                continue
            columns, limit = found
            wrong = np.zeros((len(x), base.size), bool)
            wrong[:, columns] = sign * x.reshape(len(x), -1)[:, columns].astype(float) > sign * limit
            row = int(wrong.any(1).argmax())
            if wrong[row].any() and not takes(_twice(x[row], x)):
                refuse(wrong, x, part, f"the model takes no number {side} {limit} ({hint()}", name="x")


def _twice(row: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Two equal samples, because a model with BatchNorm may need two."""
    return np.stack([row, row]).reshape(2, *x.shape[1:]).astype(x.dtype)


def _limit(takes: Takes, base: np.ndarray, extreme: np.ndarray) -> tuple[slice, int] | None:
    """Return the columns that have a limit, and the last number that they take; `None` if `extreme` is taken.

    Args:
        takes: whether the model takes a row.
        base: a row that it takes.
        extreme: the largest number of each column, or the smallest.
    """
    if takes(extreme):
        return None
    good, bad = 0, len(base)  # number of columns of `extreme` in front of the columns of `base`
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if takes(np.concatenate([extreme[:middle], base[middle:]])) else (good, middle)
    row, column = np.concatenate([extreme[:good], base[good:]]), good

    def with_number(number: int, at: int) -> np.ndarray:
        return np.where(np.arange(len(row)) == at, number, row)

    known, unknown = int(base[column]), int(extreme[column])
    while abs(unknown - known) > 1:
        middle = (known + unknown) // 2
        known, unknown = (middle, unknown) if takes(with_number(middle, column)) else (known, middle)
    other = 0 if column else len(row) - 1
    shared = not takes(with_number(unknown, other))  # one vocabulary for all columns
    return slice(None) if shared else slice(column, column + 1), known
