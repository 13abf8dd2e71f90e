"""Minimum number of rows per client, for partitioners that draw sizes at random."""

from __future__ import annotations

import numpy as np

from fl.checks import not_negative
from fl.data.grouping import group_by


def check_min_size(min_size: int, clients: int, rows: int) -> None:
    """Raise a `ValueError` if `rows` do not suffice for `min_size` rows per client."""
    not_negative(min_size=min_size)
    if clients * min_size > rows:
        raise ValueError(
            f"min_size: {min_size} for each of {clients} clients is {clients * min_size} of {rows} rows; "
            f"at most {rows // clients}"
        )


def repaired(order: np.ndarray, offsets: np.ndarray, min_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Move rows so that each client has at least `min_size`; return (indices, offsets).

    The largest clients are lowered to a common level and give the last rows of their slices to clients that are too
    small. Other clients keep their rows.

    >>> [a.tolist() for a in repaired(np.arange(6), np.array([0, 5, 6, 6]), 1)]
    [[0, 1, 2, 3, 5, 4], [0, 4, 5, 6]]
    """
    sizes = np.diff(offsets)
    need = int(np.maximum(min_size - sizes, 0).sum())
    if not need:
        return order, offsets
    low, high = min_size, int(sizes.max())  # find the highest level above which there are `need` rows
    while high - low > 1:
        level = (low + high) // 2
        low, high = (level, high) if np.maximum(sizes - level, 0).sum() >= need else (low, level)
    kept = np.minimum(sizes, low)
    spare = int((sizes - kept).sum()) - need  # fewer than there are givers; the first givers keep one more row
    kept[np.flatnonzero(sizes > low)[:spare]] += 1
    owners = np.repeat(np.arange(len(sizes)), sizes)
    given = np.arange(len(order)) - offsets[owners] >= kept[owners]
    owners[given] = np.repeat(np.arange(len(sizes)), np.maximum(min_size - sizes, 0))
    regrouped, offsets = group_by(owners, len(sizes))
    return order[regrouped], offsets
