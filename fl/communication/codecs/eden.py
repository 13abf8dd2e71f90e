"""Rotate, then round to the best levels for normal numbers: DRIVE (1 bit) and EDEN.

    r = R v (see `hadamard`), z = sqrt(m) r / |r|, nearly normal
    q = the nearest of 2^bits levels, the Lloyd-Max levels of N(0, 1)
    decode: R^-1 (S q)      S = |v|^2 / <r, q> (scale unbiased)  or  <r, q> / |q|^2 (scale least, the least error)

With scale unbiased the mean of the decoded vector is v under uniform rotations, and nearly v under Hadamard rotations.
E|error|^2 <= (pi/2 - 1) |v|^2 for 1 bit as m grows, and (1/(1 - 0.1175) - 1) |v|^2 for 2 bits.   With scale least
|error| <= |v|, biased.   For 1 bit always |error|^2 <= (m - 1) |v|^2.
Bytes: ceil(m bits / 8), and 4 per block of `block` numbers, m as in `hadamard`.
Vargaftik et al. 2021, arXiv:2105.08339 (DRIVE), and 2022, arXiv:2108.08842 (EDEN).   Differs: blocks, as in `hadamard`.
Neutral: none.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from fl.checks import within
from fl.communication.bits import pack_bits, packed_bytes, unpack_bits
from fl.communication.blocks import as_rows, as_tensor, check_finite, float_rows, pieces
from fl.communication.codec import Codec, Encoded, Output
from fl.communication.codecs.hadamard import padded, rotated, unrotated
from fl.communication.grid import check_bucket
from fl.communication.keys import Key, keys_of
from fl.registry import register


@register("codec", "eden", "drive")
@dataclass(frozen=True, kw_only=True)
class Eden(Codec):
    """Quantise a randomly rotated vector.

    Args:
        bits: Bits per number, 1 to 8. For more precision use `fp16`.
        scale: "unbiased" has the right mean; "least" has the smallest error.
        block: Numbers that are rotated together, a power of two from 8 to 16384. Shorter vectors are padded to a power
            of two, longer ones to a multiple of `block`.
    """

    bits: int = 1
    scale: Literal["unbiased", "least"] = "unbiased"
    block: int = 1 << 14

    draws: ClassVar[bool] = True
    gives: ClassVar[Output] = "bytes"

    def __post_init__(self) -> None:
        within("[1, 8]", bits=self.bits, hint="for more precision use fp16")
        check_bucket(self.block, "block")

    def encode(self, values: Tensor, key: Key = 0) -> Encoded:
        x = float_rows(values, self)
        check_finite(x, self)
        count, n = x.shape
        r = rotated(x, keys_of(key, count), self.block)
        length, levels = r.shape[1], centroids(self.bits)
        edges = ((levels[1:] + levels[:-1]) / 2).astype(np.float32)
        width = max(min(self.block, length), 1)
        scales = np.zeros((count, -(-length // self.block)), np.float32)
        packed = np.empty((count, packed_bytes(length, self.bits)), np.uint8)
        for rows, columns in pieces(count, length):
            blocks = r[rows, columns].reshape(-1, width)
            square = np.square(blocks, dtype=np.float64).sum(-1)
            z = blocks * _inverse(np.sqrt(square / width))[:, None]
            index = (z > 0).view(np.uint8) if self.bits == 1 else np.searchsorted(edges, z).astype(np.uint8)
            q = levels[index]
            along = (blocks * q).sum(-1)
            scale = square * _inverse(along) if self.scale == "unbiased" else along / np.square(q).sum(-1)
            where = rows, slice(columns.start // self.block, -(-columns.stop // self.block))
            scales[where] = scale.reshape(scales[where].shape)
            index = index.reshape(rows.stop - rows.start, -1)
            bits = pack_bits(index, self.bits)
            packed[rows, columns.start * self.bits // 8 : packed_bytes(columns.stop, self.bits)] = bits
        return Encoded({"scale": as_tensor(scales, values), "values": as_tensor(packed, values)})

    def decode(self, encoded: Encoded, n: int, key: Key = 0) -> Tensor:
        packed, scales = as_rows(encoded.tensor("values")), as_rows(encoded.tensor("scale"))
        length, levels = padded(n, self.block), centroids(self.bits).astype(np.float32)
        r = np.empty((len(packed), length), np.float32)
        width = max(min(self.block, length), 1)
        for rows, columns in pieces(len(packed), length):
            part = np.ascontiguousarray(
                packed[rows, columns.start * self.bits // 8 : packed_bytes(columns.stop, self.bits)]
            )
            q = levels[unpack_bits(part, columns.stop - columns.start, self.bits)]
            scale = scales[rows, columns.start // self.block : -(-columns.stop // self.block)].reshape(-1, 1)
            r[rows, columns] = (q.reshape(-1, width) * scale).reshape(q.shape)
        return as_tensor(unrotated(r, keys_of(key, len(packed)), self.block, n), encoded.tensor("values"))

    def sizes(self, n: int, width: int = 4) -> tuple[int, int, int]:
        length = padded(n, self.block)
        return 4 * -(-length // self.block), packed_bytes(length, self.bits), 1

    def bound(self, values: Tensor) -> float | None:
        if self.scale == "least":
            return float(values.double().norm()) * 1.001
        worst = max(min(padded(len(values), self.block), self.block) - 1, 1e-6)
        return float(values.double().norm()) * worst**0.5 * 1.001 if self.bits == 1 else None


def _inverse(numbers: np.ndarray) -> np.ndarray:
    return np.divide(1, numbers, out=np.zeros_like(numbers), where=numbers > 1e-36)


@functools.cache
def centroids(bits: int) -> np.ndarray:
    """Return the levels with the least mean square error for N(0, 1): float64 (2^bits,), ascending.

    Lloyd 1957, Max 1960.
    """
    from scipy.special import ndtr, ndtri

    count = 2**bits
    levels = np.sqrt(3) * ndtri((np.arange(count) + 0.5) / count)  # density^(1/3), the limit for many levels
    for _ in range(20000 if bits < 6 else 5000):
        edges = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
        density = np.exp(-np.square(edges) / 2) / np.sqrt(2 * np.pi)
        new = (density[:-1] - density[1:]) / np.diff(ndtr(edges))
        if np.abs(new - levels).max() < 1e-12:
            break
        levels = new
    return (levels - levels[::-1]) / 2
