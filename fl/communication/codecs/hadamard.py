"""Rotate a vector at random, so that all numbers have similar magnitude.

    R v = H D v / sqrt(m)       D random signs, H the Hadamard matrix of m numbers;      decode: D H r / sqrt(m)

Exact up to rounding (1e-6 of |v|); unbiased in front of an unbiased codec.
Bytes: 4 per number of the padded vector. Its length m is the next power of two of n; above `block` numbers it is the
next multiple of `block`, and each block is rotated by itself.
Suresh, Yu, Kumar, McMahan 2017, arXiv:1611.00429.   Differs: they rotate all numbers at once; blocks need one pass,
little memory and less padding.   Neutral: alone it changes last bits only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from fl.communication.blocks import as_rows, as_tensor, check_finite, float_rows, pieces
from fl.communication.codec import Codec, Encoded
from fl.communication.draws import random_signs
from fl.communication.grid import check_bucket
from fl.communication.keys import Key, keys_of
from fl.registry import register


@register("codec", "hadamard", "rotate")
@dataclass(frozen=True, kw_only=True)
class Hadamard(Codec):
    """Rotate blocks of numbers, for the codecs that follow.

    Args:
        block: Numbers that are rotated together, a power of two from 8 to 16384.
    """

    block: int = 1 << 14

    draws: ClassVar[bool] = True
    linear: ClassVar[bool] = True
    unbiased: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_bucket(self.block, "block")

    def encode(self, values: Tensor, key: Key = 0) -> Encoded:
        x = float_rows(values, self)
        check_finite(x, self)
        return Encoded({"values": as_tensor(rotated(x, keys_of(key, len(x)), self.block), values)})

    def decode(self, encoded: Encoded, n: int, key: Key = 0) -> Tensor:
        r = encoded.tensor("values").float()
        return as_tensor(unrotated(as_rows(r), keys_of(key, r.shape[:-1].numel()), self.block, n), r)

    def sizes(self, n: int, width: int = 4) -> tuple[int, int, int]:
        return 0, padded(n, self.block), 4

    def bound(self, values: Tensor) -> float:
        return 1e-6 * float(values.double().norm())


def padded(n: int, block: int) -> int:
    """Return the padded length of n numbers.

    >>> padded(5, 8), padded(17, 8)
    (8, 24)
    """
    return -(-n // block) * block if n > block else n and 1 << (n - 1).bit_length()


def rotated(x: np.ndarray, keys: np.ndarray, block: int) -> np.ndarray:
    """Rotate x (C, n) to (C, padded)."""
    count, n = x.shape
    length = padded(n, block)
    out = np.zeros((count, length), np.float32)
    out[:, :n] = x
    for rows, columns in pieces(count, length):
        piece = out[rows, columns]
        piece *= random_signs(keys[rows], columns.start, columns.stop)
        hadamard_transform(piece.reshape(-1, max(min(block, length), 1)))
    return out


def unrotated(r: np.ndarray, keys: np.ndarray, block: int, n: int) -> np.ndarray:
    """Undo `rotated`: (C, padded) to (C, n)."""
    count, length = r.shape
    out = np.empty((count, n), np.float32)
    for rows, columns in pieces(count, length):
        piece = r[rows, columns].copy()
        hadamard_transform(piece.reshape(-1, max(min(block, length), 1)))
        piece *= random_signs(keys[rows], columns.start, columns.stop)
        out[rows, columns.start : min(columns.stop, n)] = piece[:, : n - columns.start]
    return out


def hadamard_transform(x: np.ndarray) -> None:
    """Set x <- x H / sqrt(m) for each row of x (R, m), m a power of two.

    This takes log2(m) steps of sums and differences of halves. The steps between numbers close together work on a
    transposed copy, where they touch contiguous memory.
    """
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
    """Apply all steps over the middle axis of x (A, m, B)."""
    count, m, width = x.shape
    half = 1
    while half < m:
        pair = x.reshape(count, m // (2 * half), 2, half, width)
        upper, lower = pair[:, :, 0], pair[:, :, 1]
        difference = upper - lower
        upper += lower
        lower[...] = difference
        half *= 2
