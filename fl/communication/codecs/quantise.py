"""Uniform quantisation (QSGD).

    s = 2^(bits - 1) - 1 levels on each side;   step = norm(v) / s;   q = round(v / step);   decode: q step

    mode stochastic   q is rounded up with the probability that makes its mean v / step: unbiased (to 2^-17 of a step)
    mode nearest      biased, the error is at most half a step

|error| <= sqrt(n) step, with mode nearest half of that;  E|error|^2 <= min(n / s^2, sqrt(n) / s) |v|^2 with norm l2.
Bytes: ceil(n bits / 8), and 4 per bucket.   Alistarh, Grubic, Li, Tomioka, Vojnovic 2017, arXiv:1610.02132, which
analyses norm l2. Differs: each level takes `bits` bits instead of an Elias code; `zstd` behind it has the same purpose.
Neutral: none, 8 bits lose something; numbers below 1e-36 arrive as zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from fl.checks import within
from fl.communication.bits import packed_bytes
from fl.communication.blocks import as_rows, as_tensor, float_rows, largest_magnitude, not_finite_error, row_sums
from fl.communication.codec import Encoded, Rounding
from fl.communication.grid import check_bucket, from_grid, num_buckets, reduce_buckets, to_grid
from fl.communication.keys import Key, keys_of
from fl.registry import register

SMALLEST = 1e-36  # smaller norms count as zero, because their inverse is beyond float32


@register("codec", "quantise", "quantize", "qsgd")
@dataclass(frozen=True, kw_only=True)
class Quantise(Rounding):
    """Round numbers to equally spaced levels.

    Args:
        bits: Bits per number, 2 to 8. For one bit use `sign` or `eden`, for more than 8 use `fp16`.
        mode: "stochastic" rounds at random without bias; "nearest" rounds to the nearest level.
        norm: "max" is the largest magnitude; "l2" is the Euclidean norm, as in the paper.
        bucket: Numbers that share a norm, a power of two from 8 to 16384; None means all numbers.
    """

    bits: int = 8
    mode: Literal["stochastic", "nearest"] = "stochastic"
    norm: Literal["max", "l2"] = "max"
    bucket: int | None = None

    def __post_init__(self) -> None:
        within("[2, 8]", bits=self.bits, hint="for one bit use `sign` or `eden`, for more than 8 `fp16`")
        check_bucket(self.bucket)

    @property
    def levels(self) -> int:
        """s: levels on each side of zero."""
        return 2 ** (self.bits - 1) - 1

    def norms(self, x: np.ndarray) -> np.ndarray:
        """Return the norm of each bucket, float32 (C, buckets)."""
        if self.norm == "max":
            return reduce_buckets(x, self.bucket, lambda rows: largest_magnitude(rows, self))
        return reduce_buckets(x, self.bucket, lambda rows: l2_norms(rows, self))

    def encode(self, values: Tensor, key: Key = 0) -> Encoded:
        x = float_rows(values, self)
        norms = self.norms(x)
        inverse = np.divide(self.levels, norms, out=np.zeros_like(norms), where=norms > SMALLEST)
        keys = keys_of(key, len(x)) if self.draws else None
        packed = to_grid(x, inverse, self.bucket, self.levels, self.bits, keys)
        return Encoded({"scale": as_tensor(norms, values), "values": as_tensor(packed, values)})

    def decode(self, encoded: Encoded, n: int, key: Key = 0) -> Tensor:
        scale, packed = encoded.tensor("scale"), encoded.tensor("values")
        steps = as_rows(scale) / np.float32(self.levels)
        return as_tensor(from_grid(as_rows(packed), steps, self.bucket, self.levels, self.bits, n), packed)

    def sizes(self, n: int, width: int = 4) -> tuple[int, int, int]:
        return 4 * num_buckets(n, self.bucket), packed_bytes(n, self.bits), 1

    def bound(self, values: Tensor) -> float:
        x = float_rows(values, self)
        norms, n = self.norms(x)[0].astype(np.float64), len(values)
        lengths = np.diff(np.append(np.arange(len(norms)) * (self.bucket or 0), n))
        off = 1.0 if self.mode == "stochastic" else 0.5
        return float(np.sqrt((lengths * (off * norms / self.levels) ** 2).sum())) + SMALLEST * n


def l2_norms(x: np.ndarray, codec: object) -> np.ndarray:
    """Return the Euclidean norm of each row of x (C, n), float32 (C,)."""
    norms = np.sqrt(row_sums(x, lambda piece: np.square(piece, dtype=np.float64))).astype(np.float32)
    if not np.isfinite(norms).all():
        raise not_finite_error(codec)
    return norms
