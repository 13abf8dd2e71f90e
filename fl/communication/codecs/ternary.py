"""Three levels: -scale, 0, scale.

    mode mean         scale = the mean of |v| where v is not zero;   t = sign(v)                               biased
    mode stochastic   scale = max |v|;   t = sign(v) with probability |v| / scale, else 0                      unbiased

|error|^2 = |v|^2 - |v|_1^2 / m with mode mean, m the numbers that are not zero; <= m scale^2 with mode stochastic.
Bytes: 4 + ceil(n / 5), five numbers in a byte (3^5 = 243).
Mode mean behind `top_k` is sparse ternary compression (STC): Sattler, Wiedemann, Mueller, Samek 2019, arXiv:1903.02891; the numbers
that top_k keeps are seldom zero, so that `sign` does the same in one bit each, as the paper has it. Mode stochastic: Wen et al. 2017
(TernGrad), arXiv:1705.07878, one scale for all tensors.   Neutral: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fl.communication.blocks import dither, largest_magnitude, pieces, row_sums, rows_of, tensor
from fl.communication.codec import Encoded, Rounding, keys_of
from fl.communication.codecs.quantise import SMALLEST
from fl.communication.codecs.sign import sum_of_magnitudes
from fl.communication.positions import rows_of as bytes_of
from fl.registry import register

_WEIGHTS = 3 ** np.arange(5, dtype=np.uint8)
_TRITS = (np.arange(243)[:, None] // _WEIGHTS % 3 - 1).astype(np.float32)


@register("codec", "ternary")
@dataclass(frozen=True, kw_only=True)
class Ternary(Rounding):
    mode: Literal["mean", "stochastic"] = "mean"

    def encode(self, values, key=0):
        x = rows_of(values, self)
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
        return Encoded({"scale": tensor(scale[:, None], values), "values": tensor(packed, values)})

    def decode(self, encoded, n, key=0):
        packed, scale = bytes_of(encoded.parts["values"]), bytes_of(encoded.parts["scale"])
        out = np.empty((len(packed), n), np.float32)
        for rows, columns in pieces(len(packed), n):
            part = packed[rows, columns.start // 5 : -(-columns.stop // 5)]
            trits = _TRITS.take(part, axis=0).reshape(len(part), -1)[:, : columns.stop - columns.start]
            np.multiply(trits, scale[rows], out=out[rows, columns])
        return tensor(out, encoded.parts["values"])

    def sizes(self, n, width=4):
        return 4, -(-n // 5), 1

    def bound(self, values):
        v = values.double()
        m = int(v.count_nonzero())
        if self.mode == "stochastic":
            return float(v.abs().max()) * m**0.5 if m else 0.0
        return float((v.square().sum() - v.abs().sum() ** 2 / max(m, 1)).clamp(min=0).sqrt())


def pack_trits(numbers: np.ndarray) -> np.ndarray:
    """uint8 (C, n) below 3 -> (C, ceil(n / 5))"""
    count, n = numbers.shape
    if n % 5:
        numbers = np.concatenate([numbers, np.zeros((count, -n % 5), np.uint8)], axis=-1)
    groups = numbers.reshape(count, -1, 5)
    out = groups[..., 0].copy()
    for place in range(1, 5):
        out += _WEIGHTS[place] * groups[..., place]
    return out
