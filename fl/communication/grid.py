"""Grid: quantise numbers to 2 s + 1 equally spaced levels, s on each side of zero.

    q = round(v / step) + s        to the nearest level, or at random so that the mean of q is v / step + s
    decode: (q - s) step

Rows are (C, n) and steps (C, buckets): each bucket of a row has its own step. A bucket is `bucket` consecutive numbers;
`None` means one bucket per row.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fl.communication.bits import pack_bits, packed_bytes, unpack_bits
from fl.communication.blocks import BLOCK, pieces
from fl.communication.draws import dither

LARGEST_BUCKET = 1 << 14


def check_bucket(bucket: int | None, name: str = "bucket") -> None:
    """Require a power of two that divides BLOCK."""
    if bucket is not None and (bucket & (bucket - 1) or not 8 <= bucket <= LARGEST_BUCKET):
        raise ValueError(
            f"{name}: {bucket} is not a power of two in [8, {LARGEST_BUCKET}]; leave it out for one scale for all"
        )


def num_buckets(n: int, bucket: int | None) -> int:
    """Return the number of buckets of n numbers.

    >>> num_buckets(100, 32), num_buckets(100, None)
    (4, 1)
    """
    return 1 if bucket is None else -(-n // bucket)


def reduce_buckets(x: np.ndarray, bucket: int | None, reduce: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Apply reduce, (rows, m) -> (rows,), to the numbers of each bucket of x (C, n): returns (C, buckets)."""
    if bucket is None:
        return reduce(x)[:, None]
    count, n = x.shape
    whole = n // bucket * bucket
    inner = reduce(x[:, :whole].reshape(-1, bucket)).reshape(count, -1)
    return np.concatenate([inner, reduce(x[:, whole:])[:, None]], axis=-1) if whole < n else inner


def per_number(steps: np.ndarray, rows: slice, columns: slice, bucket: int | None) -> np.ndarray:
    """Repeat the steps of buckets for each number of a piece; (rows, 1) if a row has a single bucket."""
    if bucket is None:
        return steps[rows]
    first, last = columns.start // bucket, -(-columns.stop // bucket)
    return np.repeat(steps[rows, first:last], bucket, axis=-1)[:, : columns.stop - columns.start]


def to_grid(
    x: np.ndarray, inverse: np.ndarray, bucket: int | None, levels: int, bits: int, keys: np.ndarray | None
) -> np.ndarray:
    """Quantise x (C, n) and pack the levels: uint8 (C, bytes).

    Args:
        x: The numbers, float32.
        inverse: 1 / step, (C, buckets).
        bucket: Numbers per bucket, see the module.
        levels: s, the levels on each side of zero.
        bits: Bits per packed level.
        keys: Keys (C,) for rounding at random; None rounds to the nearest level.
    """
    count, n = x.shape
    out = np.empty((count, packed_bytes(n, bits)), np.uint8)
    for rows, columns in pieces(count, n):
        level = x[rows, columns] * per_number(inverse, rows, columns, bucket)
        if keys is None:
            level += np.float32(levels)
            np.rint(level, out=level)
        else:
            level += dither(keys[rows], columns.start, columns.stop)
            level += np.float32(levels + 0.5)
        np.clip(level, 0, 2 * levels, out=level)
        packed = pack_bits(level.astype(np.uint8), bits)
        out[rows, columns.start * bits // 8 : packed_bytes(columns.stop, bits)] = packed
    return out


def from_grid(packed: np.ndarray, steps: np.ndarray, bucket: int | None, levels: int, bits: int, n: int) -> np.ndarray:
    """Undo `to_grid`: float32 (C, n)."""
    count = len(packed)
    out = np.empty((count, n), np.float32)
    for rows, columns in pieces(count, n):
        part = np.ascontiguousarray(packed[rows, columns.start * bits // 8 : packed_bytes(columns.stop, bits)])
        level = out[rows, columns]
        level[...] = unpack_bits(part, columns.stop - columns.start, bits)
        level -= np.float32(levels)
        level *= per_number(steps, rows, columns, bucket)
    return out


assert BLOCK % LARGEST_BUCKET == 0
