"""One bit a number: signs, and their scale.

    scale = |v|_1 / n;   decode: scale sign(v), of zero +scale

Biased.   |error|^2 = |v|^2 - |v|_1^2 / n.   Bytes: 4 + ceil(n / 8).
Bernstein, Wang, Azizzadenesheli, Anandkumar 2018, arXiv:1802.04434; with the scale: Karimireddy, Rebjock, Stich, Jaggi 2019,
arXiv:1901.09847 (there behind error feedback).   Neutral: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from fl.communication.blocks import check_finite, packed_bytes, pieces, row_sums, rows_of, tensor, unpack_signs
from fl.communication.codec import Codec, Encoded
from fl.communication.positions import rows_of as bytes_of
from fl.registry import register


@register("codec", "sign")
@dataclass(frozen=True, kw_only=True)
class Sign(Codec):
    gives: ClassVar[Literal["floats", "bytes", "same"]] = "bytes"

    def encode(self, values):
        x = rows_of(values, self)
        count, n = x.shape
        total = sum_of_magnitudes(x, self)
        packed = np.empty((count, packed_bytes(n, 1)), np.uint8)
        for rows, columns in pieces(count, n):
            negative = np.packbits(x[rows, columns] < 0, axis=-1, bitorder="little")
            packed[rows, columns.start // 8 : packed_bytes(columns.stop, 1)] = negative
        scale = (total / max(n, 1)).astype(np.float32)[:, None]
        return Encoded({"scale": tensor(scale, values), "values": tensor(packed, values)})

    def decode(self, encoded, n):
        packed, scale = bytes_of(encoded.parts["values"]), bytes_of(encoded.parts["scale"])
        out = np.empty((len(packed), n), np.float32)
        for rows, columns in pieces(len(packed), n):
            bits = packed[rows, columns.start // 8 : packed_bytes(columns.stop, 1)]
            np.multiply(unpack_signs(bits, columns.stop - columns.start), scale[rows], out=out[rows, columns])
        return tensor(out, encoded.parts["values"])

    def sizes(self, n, width=4):
        return 4, packed_bytes(n, 1), 1

    def bound(self, values):
        v = values.double()
        return float((v.square().sum() - v.abs().sum() ** 2 / max(len(v), 1)).clamp(min=0).sqrt())


def sum_of_magnitudes(x: np.ndarray, codec: object) -> np.ndarray:
    """(C,) float64: |x|_1 of each row of x (C, n)."""
    total = row_sums(x, np.abs)
    if not np.isfinite(total).all():
        check_finite(x, codec)
        total = row_sums(x, lambda piece: np.abs(piece, dtype=np.float64))
    return total
