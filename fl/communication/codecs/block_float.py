"""Block floating point: the numbers of a block share an exponent.

    s = 2^(bits - 1) - 1;   step = the smallest power of two with s step >= max |v| in the block;   q = round(v / step)

    mode nearest      biased, |error| <= step / 2 per number, and step < 2 max |v| / s
    mode stochastic   unbiased (to 2^-17 of a step), |error| <= step per number

Bytes: ceil(n bits / 8), and one per block.   Wilkinson 1963; for training: Drumond et al. 2018, arXiv:1804.01526; the
OCP microscaling formats share exponents of 32 numbers, Rouhani et al. 2023, arXiv:2310.10537.
Neutral: none. Steps are between 2^-126 and 2^127: much smaller numbers arrive as zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from fl.checks import within
from fl.communication.bits import packed_bytes
from fl.communication.blocks import as_rows, as_tensor, float_rows, largest_magnitude
from fl.communication.codec import Encoded, Rounding
from fl.communication.grid import check_bucket, from_grid, num_buckets, reduce_buckets, to_grid
from fl.communication.keys import Key, keys_of
from fl.registry import register

BIAS = 127


@register("codec", "block_float")
@dataclass(frozen=True, kw_only=True)
class BlockFloat(Rounding):
    """Quantise blocks of numbers with one exponent per block.

    Args:
        bits: Bits per number, 2 to 8. For one bit use `sign`, for 16 bits use `bf16`.
        block: Numbers per block, a power of two from 8 to 16384.
        mode: "nearest" rounds to the nearest level; "stochastic" rounds at random without bias.
    """

    bits: int = 8
    block: int = 32
    mode: Literal["nearest", "stochastic"] = "nearest"

    def __post_init__(self) -> None:
        within("[2, 8]", bits=self.bits, hint="for one bit use `sign`, for 16 bits `bf16`")
        check_bucket(self.block, "block")

    @property
    def levels(self) -> int:
        """s: levels on each side of zero."""
        return 2 ** (self.bits - 1) - 1

    def exponents(self, x: np.ndarray) -> np.ndarray:
        """Return log2 of the step plus 127 for each block, uint8 (C, blocks); 0 for a block of zeros."""
        largest = reduce_buckets(x, self.block, lambda rows: largest_magnitude(rows, self)) / self.levels
        fraction, exponent = np.frexp(largest)
        exponent = np.where(fraction == 0.5, exponent - 1, exponent)  # for a power of two, its logarithm
        return np.where(largest > 0, np.clip(exponent, 1 - BIAS, BIAS) + BIAS, 0).astype(np.uint8)

    def encode(self, values: Tensor, key: Key = 0) -> Encoded:
        x = float_rows(values, self)
        exponents = self.exponents(x)
        inverse = np.where(exponents > 0, np.ldexp(np.float32(1), BIAS - exponents.astype(np.int32)), np.float32(0))
        keys = keys_of(key, len(x)) if self.draws else None
        packed = to_grid(x, inverse, self.block, self.levels, self.bits, keys)
        return Encoded({"exponents": as_tensor(exponents, values), "values": as_tensor(packed, values)})

    def decode(self, encoded: Encoded, n: int, key: Key = 0) -> Tensor:
        exponents = as_rows(encoded.tensor("exponents"))
        packed = as_rows(encoded.tensor("values"))
        steps = np.where(exponents > 0, np.ldexp(np.float32(1), exponents.astype(np.int32) - BIAS), np.float32(0))
        return as_tensor(from_grid(packed, steps, self.block, self.levels, self.bits, n), encoded.tensor("values"))

    def sizes(self, n: int, width: int = 4) -> tuple[int, int, int]:
        return num_buckets(n, self.block), packed_bytes(n, self.bits), 1

    def bound(self, values: Tensor) -> float:
        exponents, n = self.exponents(float_rows(values, self))[0].astype(np.float64), len(values)
        lengths = np.diff(np.append(np.arange(len(exponents)) * self.block, n)) if n else np.zeros(0)
        off = np.where(exponents > 0, np.exp2(exponents - BIAS), 0.0) * (1.0 if self.mode == "stochastic" else 0.5)
        return float(np.sqrt((lengths * off**2).sum()))
