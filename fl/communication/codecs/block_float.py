"""Block floating point: the numbers of a block share an exponent.

    s = 2^(bits - 1) - 1;   step = the smallest power of two with s step >= max |v| in the block;   q = round(v / step)

    mode nearest      biased, |error| <= step / 2 a number, and step < 2 max |v| / s
    mode stochastic   unbiased (to 2^-17 of a step), |error| <= step a number

Bytes: ceil(n bits / 8), and one for each block of `block` numbers.   Wilkinson 1963; for training: Drumond et al. 2018,
arXiv:1804.01526; shared exponents of 32 numbers are the OCP microscaling formats, Rouhani et al. 2023, arXiv:2310.10537.
Neutral: none. Steps are between 2^-126 and 2^127: numbers much smaller arrive as zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fl.communication.blocks import largest_magnitude, packed_bytes, rows_of, tensor
from fl.communication.codec import Encoded, Rounding, keys_of
from fl.communication.grid import buckets, check_bucket, from_grid, of_buckets, to_grid
from fl.communication.positions import rows_of as bytes_of
from fl.registry import register

BIAS = 127


@register("codec", "block_float")
@dataclass(frozen=True, kw_only=True)
class BlockFloat(Rounding):
    bits: int = 8
    block: int = 32
    mode: Literal["nearest", "stochastic"] = "nearest"

    def __post_init__(self):
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits: {self.bits} is not in 2..8; of one bit there is `sign`, of 16 bf16")
        check_bucket(self.block, "block")

    @property
    def levels(self) -> int:
        return 2 ** (self.bits - 1) - 1

    def exponents(self, x: np.ndarray) -> np.ndarray:
        """uint8 (C, blocks): log2 of the step, plus 127; 0 where all are zero."""
        largest = of_buckets(x, self.block, lambda rows: largest_magnitude(rows, self)) / self.levels
        fraction, exponent = np.frexp(largest)
        exponent = np.where(fraction == 0.5, exponent - 1, exponent)  # of a power of two its logarithm
        return np.where(largest > 0, np.clip(exponent, 1 - BIAS, BIAS) + BIAS, 0).astype(np.uint8)

    def encode(self, values, key=0):
        x = rows_of(values, self)
        exponents = self.exponents(x)
        inverse = np.where(exponents > 0, np.ldexp(np.float32(1), BIAS - exponents.astype(np.int32)), np.float32(0))
        keys = keys_of(key, len(x)) if self.draws else None
        packed = to_grid(x, inverse, self.block, self.levels, self.bits, keys)
        return Encoded({"exponents": tensor(exponents, values), "values": tensor(packed, values)})

    def decode(self, encoded, n, key=0):
        exponents = bytes_of(encoded.parts["exponents"])
        packed = bytes_of(encoded.parts["values"])
        steps = np.where(exponents > 0, np.ldexp(np.float32(1), exponents.astype(np.int32) - BIAS), np.float32(0))
        return tensor(from_grid(packed, steps, self.block, self.levels, self.bits, n), encoded.parts["values"])

    def sizes(self, n, width=4):
        return buckets(n, self.block), packed_bytes(n, self.bits), 1

    def bound(self, values):
        exponents, n = self.exponents(rows_of(values, self))[0].astype(np.float64), len(values)
        lengths = np.diff(np.append(np.arange(len(exponents)) * self.block, n)) if n else np.zeros(0)
        off = np.where(exponents > 0, np.exp2(exponents - BIAS), 0.0) * (1.0 if self.mode == "stochastic" else 0.5)
        return float(np.sqrt((lengths * off**2).sum()))
