"""Numbers on a grid of 2 s + 1 levels around zero, s on each side, whose step is a client's or a bucket's own:

    q = round(v / step) + s, to the nearest or at random so that its mean is v / step + s;   decode: (q - s) step

Rows are (C, n), steps (C, buckets); a bucket is `bucket` consecutive numbers, or all of them where it is `None`.
"""

from __future__ import annotations

import numpy as np

from fl.communication.blocks import BLOCK, dither, pack_bits, packed_bytes, pieces, unpack_bits

LARGEST_BUCKET = 1 << 14


def check_bucket(bucket: int | None, name: str = "bucket") -> None:
    """BLOCK is a multiple of every bucket."""
    if bucket is not None and (bucket & (bucket - 1) or not 8 <= bucket <= LARGEST_BUCKET):
        raise ValueError(
            f"{name}: {bucket} is not a power of two in [8, {LARGEST_BUCKET}]; leave it out for one scale for all"
        )


def buckets(n: int, bucket: int | None) -> int:
    return 1 if bucket is None else -(-n // bucket)


def of_buckets(x: np.ndarray, bucket: int | None, reduce) -> np.ndarray:
    """(C, buckets): reduce(rows) -> (rows,) over the numbers of each bucket."""
    if bucket is None:
        return reduce(x)[:, None]
    count, n = x.shape
    whole = n // bucket * bucket
    inner = reduce(x[:, :whole].reshape(-1, bucket)).reshape(count, -1)
    return np.concatenate([inner, reduce(x[:, whole:])[:, None]], axis=-1) if whole < n else inner


def spread(steps: np.ndarray, rows: slice, columns: slice, bucket: int | None) -> np.ndarray:
    """The step of each number of a piece, or one for all."""
    if bucket is None:
        return steps[rows]
    first, last = columns.start // bucket, -(-columns.stop // bucket)
    return np.repeat(steps[rows, first:last], bucket, axis=-1)[:, : columns.stop - columns.start]


def to_grid(
    x: np.ndarray, inverse: np.ndarray, bucket: int | None, levels: int, bits: int, keys: np.ndarray | None
) -> np.ndarray:
    """x / step on the grid, packed: uint8 (C, bytes); `inverse` is 1 / step. With keys it is rounded at random."""
    count, n = x.shape
    out = np.empty((count, packed_bytes(n, bits)), np.uint8)
    for rows, columns in pieces(count, n):
        level = x[rows, columns] * spread(inverse, rows, columns, bucket)
        if keys is None:
            level += np.float32(levels)
            np.rint(level, out=level)
        else:
            level += dither(keys[rows], columns.start, columns.stop)
            level += np.float32(levels + 0.5)
        np.clip(level, 0, 2 * levels, out=level)
        out[rows, columns.start * bits // 8 : packed_bytes(columns.stop, bits)] = pack_bits(
            level.astype(np.uint8), bits
        )
    return out


def from_grid(packed: np.ndarray, steps: np.ndarray, bucket: int | None, levels: int, bits: int, n: int) -> np.ndarray:
    """The inverse of `to_grid`: float32 (C, n)."""
    count = len(packed)
    out = np.empty((count, n), np.float32)
    for rows, columns in pieces(count, n):
        part = np.ascontiguousarray(packed[rows, columns.start * bits // 8 : packed_bytes(columns.stop, bits)])
        level = out[rows, columns]
        level[...] = unpack_bits(part, columns.stop - columns.start, bits)
        level -= np.float32(levels)
        level *= spread(steps, rows, columns, bucket)
    return out


assert BLOCK % LARGEST_BUCKET == 0
