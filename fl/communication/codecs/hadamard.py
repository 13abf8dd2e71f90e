"""A random rotation, so that what follows sees numbers of like size.

    R v = H D v / sqrt(m)       D random signs, H the Hadamard matrix of m numbers;      decode: D H r / sqrt(m)

Lossless up to rounding (1e-6 of |v|), unbiased in front of what is.   Bytes: 4 for each number, of which there are as many as
the next power of two, beyond `block` numbers the next multiple of it: each block is rotated by itself.
Suresh, Yu, Kumar, McMahan 2017, arXiv:1611.00429.   Differs: they rotate all numbers at once; blocks take one pass in little memory
and pad less.   Neutral: alone it changes last bits only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl.communication.blocks import check_finite, pieces, rows_of, signs, tensor
from fl.communication.codec import Codec, Encoded, keys_of
from fl.communication.grid import check_bucket
from fl.communication.positions import rows_of as numbers_of
from fl.registry import register


@register("codec", "hadamard", "rotate")
@dataclass(frozen=True, kw_only=True)
class Hadamard(Codec):
    block: int = 1 << 14

    draws: ClassVar[bool] = True
    unbiased: ClassVar[bool] = True

    def __post_init__(self):
        check_bucket(self.block, "block")

    def encode(self, values, key=0):
        x = rows_of(values, self)
        check_finite(x, self)
        return Encoded({"values": tensor(rotated(x, keys_of(key, len(x)), self.block), values)})

    def decode(self, encoded, n, key=0):
        r = encoded.parts["values"].float()
        return tensor(unrotated(numbers_of(r), keys_of(key, r.shape[:-1].numel()), self.block, n), r)

    def sizes(self, n, width=4):
        return 0, padded(n, self.block), 4

    def bound(self, values):
        return 1e-6 * float(values.double().norm())


def padded(n: int, block: int) -> int:
    """How many numbers n become."""
    return -(-n // block) * block if n > block else n and 1 << (n - 1).bit_length()


def rotated(x: np.ndarray, keys: np.ndarray, block: int) -> np.ndarray:
    """x (C, n) -> (C, padded)"""
    count, n = x.shape
    length = padded(n, block)
    out = np.zeros((count, length), np.float32)
    out[:, :n] = x
    for rows, columns in pieces(count, length):
        piece = out[rows, columns]
        piece *= signs(keys[rows], columns.start, columns.stop)
        transform(piece.reshape(-1, max(min(block, length), 1)))
    return out


def unrotated(r: np.ndarray, keys: np.ndarray, block: int, n: int) -> np.ndarray:
    """The inverse: (C, padded) -> (C, n)."""
    count, length = r.shape
    out = np.empty((count, n), np.float32)
    for rows, columns in pieces(count, length):
        piece = r[rows, columns].copy()
        transform(piece.reshape(-1, max(min(block, length), 1)))
        piece *= signs(keys[rows], columns.start, columns.stop)
        out[rows, columns.start : min(columns.stop, n)] = piece[:, : n - columns.start]
    return out


def transform(x: np.ndarray) -> None:
    """x <- x H / sqrt(m) for each row of x (R, m), m a power of two: log2(m) sums and differences of halves. Those of the last
    numbers, close together, are done on a transpose."""
    count, m = x.shape
    if not x.size:
        return
    inner = min(m, 128)
    near = np.ascontiguousarray(x.reshape(-1, inner).T)
    _butterflies(near.reshape(1, inner, -1))
    x.reshape(-1, inner)[...] = near.T
    _butterflies(x.reshape(count, m // inner, inner))
    x *= np.float32(m**-0.5)


def _butterflies(x: np.ndarray) -> None:
    """Over the middle axis of x (A, m, B)."""
    count, m, width = x.shape
    half = 1
    while half < m:
        pair = x.reshape(count, m // (2 * half), 2, half, width)
        upper, lower = pair[:, :, 0], pair[:, :, 1]
        difference = upper - lower
        upper += lower
        lower[...] = difference
        half *= 2
