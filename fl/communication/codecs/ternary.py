"""Send one of three levels per number: -scale, 0, scale.

    mode mean         scale = the mean of |v| over numbers that are not zero;   t = sign(v)             biased
    mode stochastic   scale = max |v|;   t = sign(v) with probability |v| / scale, else 0               unbiased

m is the count of numbers that are not zero.
|error|^2 = |v|^2 - |v|_1^2 / m with mode mean; |error|^2 <= m scale^2 with mode stochastic.
Bytes: 4 + ceil(n / 5), five numbers per byte (3^5 = 243).
Mode mean behind `top_k` is sparse ternary compression (STC): Sattler, Wiedemann, Mueller, Samek 2019, arXiv:1903.02891.
The numbers that top_k keeps are seldom zero, so `sign` has the same effect with one bit each, as in the paper. Mode
stochastic: Wen et al. 2017 (TernGrad), arXiv:1705.07878, one scale for all tensors.   Neutral: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from fl.communication.blocks import as_rows, as_tensor, float_rows, largest_magnitude, pieces, row_sums
from fl.communication.codec import Encoded, Rounding
from fl.communication.codecs.quantise import SMALLEST
from fl.communication.codecs.sign import sum_of_magnitudes
from fl.communication.draws import dither
from fl.communication.keys import Key, keys_of
from fl.registry import register

_WEIGHTS = 3 ** np.arange(5, dtype=np.uint8)
_TRITS = (np.arange(243)[:, None] // _WEIGHTS % 3 - 1).astype(np.float32)


@register("codec", "ternary")
@dataclass(frozen=True, kw_only=True)
class Ternary(Rounding):
    """Round numbers to three levels.

    Args:
        mode: "mean" sends the signs of all numbers; "stochastic" sends a sign with a probability that has no bias.
    """

    mode: Literal["mean", "stochastic"] = "mean"

    def encode(self, values: Tensor, key: Key = 0) -> Encoded:
        x = float_rows(values, self)
        count, n = x.shape
        if self.mode == "mean":
            scale = (sum_of_magnitudes(x, self) / np.maximum(row_sums(x, lambda p: p != 0), 1)).astype(np.float32)
        else:
            scale = largest_magnitude(x, self)
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > SMALLEST)[:, None]
        keys = keys_of(key, count)
        packed = np.empty((count, -(-n // 5)), np.uint8)
        for rows, columns in pieces(count, n):
            piece = x[rows, columns]
            if self.mode == "mean":
                level = 1 + (piece > 0).view(np.int8) - (piece < 0).view(np.int8)
            else:
                level = piece * inverse[rows]
                level += dither(keys[rows], columns.start, columns.stop)
                level += np.float32(1.5)
                np.clip(level, 0, 2, out=level)
            packed[rows, columns.start // 5 : -(-columns.stop // 5)] = pack_trits(level.astype(np.uint8))
        return Encoded({"scale": as_tensor(scale[:, None], values), "values": as_tensor(packed, values)})

    def decode(self, encoded: Encoded, n: int, key: Key = 0) -> Tensor:
        packed, scale = as_rows(encoded.tensor("values")), as_rows(encoded.tensor("scale"))
        out = np.empty((len(packed), n), np.float32)
        for rows, columns in pieces(len(packed), n):
            part = packed[rows, columns.start // 5 : -(-columns.stop // 5)]
            trits = _TRITS.take(part, axis=0).reshape(len(part), -1)[:, : columns.stop - columns.start]
            np.multiply(trits, scale[rows], out=out[rows, columns])
        return as_tensor(out, encoded.tensor("values"))

    def sizes(self, n: int, width: int = 4) -> tuple[int, int, int]:
        return 4, -(-n // 5), 1

    def bound(self, values: Tensor) -> float:
        v = values.double()
        m = int(v.count_nonzero())
        if self.mode == "stochastic":
            return float(v.abs().max()) * m**0.5 if m else 0.0
        return float((v.square().sum() - v.abs().sum() ** 2 / max(m, 1)).clamp(min=0).sqrt())


def pack_trits(numbers: np.ndarray) -> np.ndarray:
    """Pack numbers uint8 (C, n) below 3 to bytes (C, ceil(n / 5)), five per byte.

    >>> pack_trits(np.array([[1, 2, 0, 0, 1]], np.uint8)).tolist()  # 1 + 2 * 3 + 1 * 81
    [[88]]
    """
    count, n = numbers.shape
    if n % 5:
        numbers = np.concatenate([numbers, np.zeros((count, -n % 5), np.uint8)], axis=-1)
    groups = numbers.reshape(count, -1, 5)
    out = groups[..., 0].copy()
    for place in range(1, 5):
        out += _WEIGHTS[place] * groups[..., place]
    return out
