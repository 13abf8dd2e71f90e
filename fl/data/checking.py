"""Checks of a loaded data set, before anything else happens: features here, labels by the task.

Each check passes once over an array. Mapped files are read in blocks, and no array is copied. A refusal names the
array, the value, how many rows have it, the first such row (from 0, as loaded), and what to do.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from fl.data.dataset import Arrays, Dataset
from fl.data.labels import NO_LABEL, has_no_label, without_labels

if TYPE_CHECKING:
    from fl.tasks.task import Task

BLOCK = 1 << 22  # numbers that are checked at once


def checked(dataset: Dataset, task: Task, gaps: bool = False) -> Dataset:
    """Return the data set as a run uses it.

    Features of one dimension (N,) become (N, 1) if they are real numbers. The task checks and converts `y`. With
    `gaps`, training rows with y = -1 or NaN have no label: the task checks the other rows, and these have -1 (in real
    numbers NaN) in the result.

    Raises:
        ValueError: there are no training rows, a number is not finite, or the labels do not fit the task.
    """
    if not len(dataset):
        raise ValueError("train has no rows")
    if dataset.words is not None and not task.word_labels:
        raise ValueError(
            f"y has words ({', '.join(map(repr, dataset.words[:3]))}, ...), and this task needs numbers; "
            "convert them, or use task: classification"
        )
    return dataset.mapped(
        lambda part, arrays: (_with_gaps if gaps and part == "train" else _checked)(arrays, part, task)
    )


def _with_gaps(arrays: Arrays, where: str, task: Task) -> Arrays:
    y = require_labels(arrays, where)
    assert y is not None
    missing = has_no_label(y)
    if y.dtype.kind == "f" and task.kernel == "cross_entropy":  # classes as real numbers
        missing |= (y == NO_LABEL).all(axis=tuple(range(1, y.ndim)))
    if missing.all():
        raise ValueError(f"{where} y has no labels: all {len(y)} rows are -1 or NaN")
    filled = np.array(y)
    filled[missing] = y[np.argmin(missing)]
    arrays = _checked({**arrays, "y": filled}, where, task)
    return {**arrays, "y": without_labels(arrays["y"], np.flatnonzero(missing))}


def _checked(arrays: Arrays, where: str, task: Task) -> Arrays:
    for name, array in arrays.items():
        if name != "y":
            require_finite(array, f"{where} {name}")
    x = arrays["x"]
    if x.ndim == 1 and x.dtype.kind == "f":
        arrays = arrays | {"x": x.reshape(-1, 1)}
    return task.checked(arrays, where)


def require_finite(array: np.ndarray, name: str) -> None:
    """Require finite numbers. The error names the first row, and its column if a row has several numbers.

    >>> require_finite(np.array([[1.0, 2.0], [3.0, np.nan]]), "train x")
    Traceback (most recent call last):
    ValueError: train x has nan in row 1, column 1 (1 of 4 numbers is not finite); fill it in, or leave the row out
    """
    if array.dtype.kind != "f" or not array.size:
        return
    width, count, first = array.size // len(array), 0, None
    for start, block in _blocks(array.reshape(-1), BLOCK):
        # smallest and largest number: both are finite if all are, and no temporary array is needed
        if not (np.isfinite(block.min()) and np.isfinite(block.max())):
            wrong = np.flatnonzero(~np.isfinite(block))
            count += len(wrong)
            first = (start + int(wrong[0]), block[wrong[0]]) if first is None else first
    if first is not None:
        (row, column), value = divmod(first[0], width), first[1]
        place = f"row {row}" if array.ndim == 1 else f"row {row}, column {column}"
        some = f"{count} of {array.size} numbers {'is' if count == 1 else 'are'} not finite"
        hint = "fill it in, or leave the row out" if np.isnan(value) else "float32 holds numbers up to 3.4e38"
        raise ValueError(f"{name} has {value} in {place} ({some}); {hint}")


def column_extremes(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and the largest number of each column, both of the shape of a row.

    >>> column_extremes(np.array([[1, 5], [3, 2]]))
    (array([1, 2]), array([3, 5]))
    """
    low, high = np.array(array[0]), np.array(array[0])
    rows = max(1, BLOCK // low.size)
    for _, block in _blocks(array, rows):
        low, high = np.minimum(low, block.min(0)), np.maximum(high, block.max(0))
    return low, high


def _blocks(array: np.ndarray, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first position, entries) of blocks of `size`. Pages of a mapped file are released after reading."""
    for start in range(0, len(array), size):
        yield start, array[start : start + size]
        if isinstance(array, np.memmap):
            array._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]  # numpy has no public name for it


def require_labels(arrays: Mapping[str, np.ndarray], where: str) -> np.ndarray | None:
    """Return `y`; None if it is missing in the server's own rows, which may be without labels."""
    if "y" in arrays:
        return arrays["y"]
    if where == "server":
        return None
    raise ValueError(f"{where} has no 'y' in {sorted(arrays)}; this task needs labels")


def refuse(wrong: np.ndarray, y: np.ndarray, where: str, hint: str, name: str = "y") -> None:
    """Refuse the numbers of `y` where `wrong` is true, which has as many entries; `name` is the array's name.

    >>> y = np.array([0, -1, 2, -1])
    >>> refuse(y < 0, y, "train", "classes are numbered from 0")
    Traceback (most recent call last):
    ValueError: train y has -1 in row 1 (2 of 4 values are wrong); classes are numbered from 0
    """
    count = int(np.count_nonzero(wrong))
    if not count:
        return
    row, column = divmod(int(np.argmax(wrong)), y.size // len(y))
    place = f"row {row}" if y.ndim == 1 else f"row {row}, column {column}"
    value = y.reshape(-1)[int(np.argmax(wrong))]
    shown = f"{value:g}" if y.dtype.kind == "f" else str(value)
    some = f"{count} of {y.size} values {'is' if count == 1 else 'are'} wrong"
    raise ValueError(f"{where} {name} has {shown} in {place} ({some}); {hint}")


def whole_numbers(y: np.ndarray, where: str, hint: str) -> np.ndarray:
    """Return labels as int64; fractions, NaN and infinities are refused.

    >>> whole_numbers(np.array([0.0, 2.0]), "train", "classes are whole numbers")
    array([0, 2])
    """
    if y.dtype.kind != "f":
        return y if y.dtype == np.int64 else y.astype(np.int64)
    refuse(~(np.isfinite(y) & (y == np.floor(y))), y, where, hint)
    refuse(np.abs(y) > 2.0**53, y, where, hint)
    return y.astype(np.int64)
