"""Operations on the columns of a matrix: weighted sums in the order of a binary tree, and order statistics.

A tile of columns stays in the near caches until it is done. Order statistics come from a sorting network, which makes
the same comparisons for all columns:

    for (i, j) in the network:   row_i, row_j <- min(row_i, row_j), max(row_i, row_j)

Values are compared as integers: with the bits b of a float, b if b >= 0 else b ^ max has the order of the floats, with
-0 before 0. NaN becomes the largest integer.
"""

from __future__ import annotations

import numpy as np

from fl.execution.training.native import cache
from fl.execution.training.native.jit import inlined, owner, part
from fl.execution.training.native.vector import LINE, exchange

TILE = 256  # columns that are sorted together
SUM_TILE = 8192  # columns that are summed together
LEVELS = 64  # of a tree, at most


@inlined
def _sort(rows: np.ndarray, network: np.ndarray, limits: np.ndarray, start: int, width: int, tile: np.ndarray) -> None:
    """Read the values of `width` columns from `start` on into `tile`, and sort them there by the network.

    The tile holds integers that have the order of the floats.

    Args:
        rows: floats viewed as signed integers of the same size, (n, P).
        network: pairs i < j of rows in the order of comparison, (comparisons, 2).
        limits: the largest integer of the type of `rows`, and the float infinity viewed as one, (2,).
        start: the first column.
        width: number of columns, at most TILE.
        tile: of the type of `rows`, (n * TILE,).
    """
    largest, infinity, step = limits[0], limits[1], LINE // rows.itemsize
    for i in range(len(rows)):
        row, values = rows[i, start : start + width], tile[i * TILE : (i + 1) * TILE]
        for c in range(width):
            bits = row[c]
            value = bits if bits >= 0 else bits ^ largest
            values[c] = largest if (bits & largest) > infinity else value
    for k in range(len(network)):
        low, high = network[k, 0] * TILE, network[k, 1] * TILE
        for c in range(0, TILE, step):
            exchange(tile, low + c, high + c)


@owner
def order_statistics(
    rows: np.ndarray, network: np.ndarray, rank: int, limits: np.ndarray, first: int, last: int, out: np.ndarray
) -> None:
    """out[k, c] <- the value of rank `rank` + k in column c of `rows`, for columns first <= c < last.

    Args:
        rows: see `_sort`.
        network: likewise.
        rank: the first rank, from 0.
        limits: see `_sort`.
        first: the first column.
        last: the column after the last one.
        out: values viewed as integers, (ranks, P).
    """
    largest, tile = limits[0], np.empty(len(rows) * TILE, rows.dtype)
    for start in range(first, last, TILE):
        width = min(TILE, last - start)
        _sort(rows, network, limits, start, width, tile)
        for k in range(len(out)):
            row, values = out[k, start : start + width], tile[(rank + k) * TILE : (rank + k + 1) * TILE]
            for c in range(width):
                value = values[c]
                row[c] = value if value >= 0 else value ^ largest


@owner
def means_of_ranks(
    rows: np.ndarray,
    network: np.ndarray,
    rank: int,
    ranks: int,
    limits: np.ndarray,
    first: int,
    last: int,
    out: np.ndarray,
) -> None:
    """out[c] <- the mean of `ranks` values from rank `rank` on in column c, for columns first <= c < last.

    They are added in float64, in ascending order.

    Args:
        rows: see `_sort`.
        network: likewise.
        rank: the first rank, from 0.
        ranks: number of ranks.
        limits: see `_sort`.
        first: the first column.
        last: the column after the last one.
        out: floats, (P,).
    """
    largest, tile, sums = limits[0], np.empty(len(rows) * TILE, rows.dtype), np.empty(TILE, np.float64)
    floats = tile.view(out.dtype)
    for start in range(first, last, TILE):
        width = min(TILE, last - start)
        _sort(rows, network, limits, start, width, tile)
        sums[:] = 0
        for at in range(rank * TILE, (rank + ranks) * TILE, TILE):
            values, numbers = tile[at : at + TILE], floats[at : at + TILE]
            for c in range(width):
                value = values[c]
                values[c] = value if value >= 0 else value ^ largest
            for c in range(width):
                sums[c] += numbers[c]
        means = out[start : start + width]
        for c in range(width):
            means[c] = sums[c] / ranks


@owner
def weighted_sum(rows: np.ndarray, weights: np.ndarray, first: int, last: int, out: np.ndarray) -> None:
    """out[c] <- sum_i weights[i] rows[i, c] for columns first <= c < last, in the order of `fl.method.fold.Fold`.

    Four rows are added in registers. Their sum goes to a stack. Two sums of the stack over equally many rows are added.

    Args:
        rows: floats, (n, P), n > 0.
        weights: of the same type, (n,).
        first: the first column.
        last: the column after the last one.
        out: of the same type, (P,).
    """
    n = len(rows)
    full = n - n % 4
    sums = np.empty((LEVELS, SUM_TILE), rows.dtype)
    for start in range(first, last, SUM_TILE):
        stop = min(start + SUM_TILE, last)
        width, depth = stop - start, 0
        for i in range(0, full, 4):
            a, b = rows[i, start:stop], rows[i + 1, start:stop]
            c, d = rows[i + 2, start:stop], rows[i + 3, start:stop]
            p, q, r, s = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
            four = sums[depth]
            for k in range(width):
                four[k] = (a[k] * p + b[k] * q) + (c[k] * r + d[k] * s)
            depth += 1
            done = i // 4 + 1
            while done % 2 == 0:
                _add_last(sums, depth, width)
                depth -= 1
                done //= 2
        for i in range(full, n):
            row, weight, one = rows[i, start:stop], weights[i], sums[depth]
            for k in range(width):
                one[k] = row[k] * weight
            depth += 1
            if i == full + 1:
                _add_last(sums, depth, width)
                depth -= 1
        while depth > 1:  # the right edge of the tree
            _add_last(sums, depth, width)
            depth -= 1
        total, target = sums[0], out[start:stop]
        for k in range(width):
            target[k] = total[k]


@part
def _add_last(sums: np.ndarray, depth: int, width: int) -> None:
    """Add the last of `depth` sums to the one before."""
    left, right = sums[depth - 2], sums[depth - 1]
    for k in range(width):
        left[k] += right[k]


cache.keep(order_statistics)
cache.keep(means_of_ranks)
cache.keep(weighted_sum)
