"""Send one bit per number: the signs, and their scale.

    scale = |v|_1 / n;   decode: scale sign(v), and +scale for zero

Biased.   |error|^2 = |v|^2 - |v|_1^2 / n.   Bytes: 4 + ceil(n / 8).
Bernstein, Wang, Azizzadenesheli, Anandkumar 2018, arXiv:1802.04434; with the scale: Karimireddy, Rebjock, Stich, Jaggi
2019, arXiv:1901.09847 (there behind error feedback).   Neutral: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from fl.communication.bits import packed_bytes, unpack_signs
from fl.communication.blocks import as_rows, as_tensor, check_finite, float_rows, pieces, row_sums
from fl.communication.codec import Codec, Encoded, Output
from fl.registry import register


@register("codec", "sign")
@dataclass(frozen=True, kw_only=True)
class Sign(Codec):
    """Send signs and one scale per vector. It has no hyper-parameters."""

    gives: ClassVar[Output] = "bytes"

    def encode(self, values: Tensor) -> Encoded:
        x = float_rows(values, self)
        count, n = x.shape
        total = sum_of_magnitudes(x, self)
        packed = np.empty((count, packed_bytes(n, 1)), np.uint8)
        for rows, columns in pieces(count, n):
            negative = np.packbits(x[rows, columns] < 0, axis=-1, bitorder="little")
            packed[rows, columns.start // 8 : packed_bytes(columns.stop, 1)] = negative
        scale = (total / max(n, 1)).astype(np.float32)[:, None]
        return Encoded({"scale": as_tensor(scale, values), "values": as_tensor(packed, values)})

    def decode(self, encoded: Encoded, n: int) -> Tensor:
        packed, scale = as_rows(encoded.tensor("values")), as_rows(encoded.tensor("scale"))
        out = np.empty((len(packed), n), np.float32)
        for rows, columns in pieces(len(packed), n):
            bits = packed[rows, columns.start // 8 : packed_bytes(columns.stop, 1)]
            np.multiply(unpack_signs(bits, columns.stop - columns.start), scale[rows], out=out[rows, columns])
        return as_tensor(out, encoded.tensor("values"))

    def sizes(self, n: int, width: int = 4) -> tuple[int, int, int]:
        return 4, packed_bytes(n, 1), 1

    def bound(self, values: Tensor) -> float:
        v = values.double()
        return float((v.square().sum() - v.abs().sum() ** 2 / max(len(v), 1)).clamp(min=0).sqrt())


def sum_of_magnitudes(x: np.ndarray, codec: object) -> np.ndarray:
    """Return |x|_1 of each row of x (C, n), float64 (C,)."""
    total = row_sums(x, np.abs)
    if not np.isfinite(total).all():
        check_finite(x, codec)
        total = row_sums(x, lambda piece: np.abs(piece, dtype=np.float64))
    return total
