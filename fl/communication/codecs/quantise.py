"""Uniform quantisation (QSGD).

    s = 2^(bits - 1) - 1 levels on each side;   step = norm(v) / s;   q = round(v / step);   decode: q step

    mode stochastic   q is rounded up with the probability that makes its mean v / step: unbiased (to 2^-17 of a step)
    mode nearest      biased, at most half a step off

|error| <= sqrt(n) step, with mode nearest half of that;  E|error|^2 <= min(n / s^2, sqrt(n) / s) |v|^2 with norm l2.
Bytes: ceil(n bits / 8), and 4 for each bucket.   Alistarh, Grubic, Li, Tomioka, Vojnovic 2017, arXiv:1610.02132.
`norm`: max (default) or l2, which the paper analyses; its buckets of `bucket` numbers each with a norm of their own (default: all
are one). Differs: levels are sent in `bits` bits each and not in Elias codes; `zstd` behind it does what those are for.
Neutral: none, 8 bits lose something; numbers below 1e-36 arrive as zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fl.communication.blocks import largest_magnitude, packed_bytes, refuse, row_sums, rows_of, tensor
from fl.communication.codec import Encoded, Rounding, keys_of
from fl.communication.grid import buckets, check_bucket, from_grid, of_buckets, to_grid
from fl.communication.positions import rows_of as bytes_of
from fl.registry import register

SMALLEST = 1e-36  # norms below are taken for zero: their inverse is beyond float32


@register("codec", "quantise", "quantize", "qsgd")
@dataclass(frozen=True, kw_only=True)
class Quantise(Rounding):
    bits: int = 8
    mode: Literal["stochastic", "nearest"] = "stochastic"
    norm: Literal["max", "l2"] = "max"
    bucket: int | None = None

    def __post_init__(self):
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits: {self.bits} is not in 2..8; one bit a number is `sign` or `eden`, more is fp16")
        check_bucket(self.bucket)

    @property
    def levels(self) -> int:
        return 2 ** (self.bits - 1) - 1

    def norms(self, x: np.ndarray) -> np.ndarray:
        """float32 (C, buckets)"""
        if self.norm == "max":
            return of_buckets(x, self.bucket, lambda rows: largest_magnitude(rows, self))
        return of_buckets(x, self.bucket, lambda rows: l2(rows, self))

    def encode(self, values, key=0):
        x = rows_of(values, self)
        norms = self.norms(x)
        inverse = np.divide(self.levels, norms, out=np.zeros_like(norms), where=norms > SMALLEST)
        keys = keys_of(key, len(x)) if self.draws else None
        packed = to_grid(x, inverse, self.bucket, self.levels, self.bits, keys)
        return Encoded({"scale": tensor(norms, values), "values": tensor(packed, values)})

    def decode(self, encoded, n, key=0):
        scale, packed = encoded.parts["scale"], encoded.parts["values"]
        steps = bytes_of(scale) / np.float32(self.levels)
        return tensor(from_grid(bytes_of(packed), steps, self.bucket, self.levels, self.bits, n), packed)

    def sizes(self, n, width=4):
        return 4 * buckets(n, self.bucket), packed_bytes(n, self.bits), 1

    def bound(self, values):
        x = rows_of(values, self)
        norms, n = self.norms(x)[0].astype(np.float64), len(values)
        lengths = np.diff(np.append(np.arange(len(norms)) * (self.bucket or 0), n))
        off = 1.0 if self.mode == "stochastic" else 0.5
        return float(np.sqrt((lengths * (off * norms / self.levels) ** 2).sum())) + SMALLEST * n


def l2(x: np.ndarray, codec: object) -> np.ndarray:
    """(C,) float32: the Euclidean norm of each row of x (C, n)."""
    norms = np.sqrt(row_sums(x, lambda piece: np.square(piece, dtype=np.float64))).astype(np.float32)
    if not np.isfinite(norms).all():
        raise refuse(codec)
    return norms
