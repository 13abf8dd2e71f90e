"""The largest entries only (top-k sparsification).

    keep the k = max(1, floor(ratio n)) entries of largest |v|, of equal ones the first;   decode: zero elsewhere

Aji, Heafield 2017, arXiv:1704.05021 (there with error feedback).  Neutral: ratio=1, up to the bitmap that it sends.
Positions, ascending, take the smaller of two packings, which both ends can tell from n and k:

    k ceil(log2 n) bits   indices, each in as many bits as the last one needs, lowest bit first
    n bits                a bitmap
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import torch
from torch import Tensor

from fl.codec import Codec, Encoded
from fl.registry import register


@register("codec", "top_k")
@dataclass(frozen=True, kw_only=True)
class TopK(Codec):
    ratio: float

    def __post_init__(self):
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio: {self.ratio} is not in (0, 1]; it is the share of entries to keep")

    def kept(self, n: int) -> int:
        """k, with the ratio taken as the decimal it is written as: .29 of 100 is 29, though 0.29 * 100 < 29."""
        return min(n, max(1, int(Decimal(str(self.ratio)) * n)))

    def encode(self, values):
        n = values.shape[-1]
        positions = largest(values, self.kept(n))
        return Encoded({"positions": pack_positions(positions, n), "values": values.gather(-1, positions)})

    def decode(self, encoded, n):
        values = encoded.parts["values"]
        positions = unpack_positions(encoded.parts["positions"], n, values.shape[-1])
        return values.new_zeros(*values.shape[:-1], n).scatter_(-1, positions, values)

    def sizes(self, n, width=4):
        k = self.kept(n)
        return -(-min(k * _index_bits(n), n) // 8), k, width


def largest(values: Tensor, k: int) -> Tensor:
    """Positions (*batch, k), ascending, of the k entries of largest magnitude; of equal ones the first."""
    if k == 0:
        return torch.zeros(*values.shape[:-1], 0, dtype=torch.int64)
    magnitude = values.abs()
    top, positions = magnitude.topk(k, sorted=False)
    if not top.isfinite().all():  # topk puts NaN and infinity first: if there are any, they are here
        raise ValueError(
            f"top_k orders entries by magnitude, and of {tuple(values.shape)} some are not finite: "
            "use a smaller learning rate or clip, or drop such clients (on_client_error: drop)"
        )
    least = top.amin(-1, keepdim=True)
    equal = magnitude == least
    if equal.count_nonzero() == (top == least).count_nonzero():
        return positions.sort(-1).values
    above = magnitude > least  # topk left some of the least out, and says not which
    room = k - above.sum(-1, keepdim=True)
    keep = above | (equal & (equal.cumsum(-1) <= room))
    return keep.nonzero()[:, -1].reshape(*values.shape[:-1], k)


def _index_bits(n: int) -> int:
    """ceil(log2 n)"""
    return max(0, n - 1).bit_length()


def pack_positions(positions: Tensor, n: int) -> Tensor:
    """Ascending positions (*batch, k) below n -> bytes (*batch, B) uint8."""
    *batch, k = positions.shape
    bits = _index_bits(n)
    if k * bits > n:
        flags = torch.zeros(*batch, n, dtype=torch.uint8).scatter_(-1, positions, 1).numpy()
    else:
        assert bits <= 32
        words = positions.numpy().astype("<u4").view(np.uint8).reshape(*batch, k, 4)
        flags = np.unpackbits(words, axis=-1, bitorder="little")[..., :bits].reshape(*batch, k * bits)
    return torch.from_numpy(np.packbits(flags, axis=-1, bitorder="little"))


def unpack_positions(packed: Tensor, n: int, k: int) -> Tensor:
    """The inverse of `pack_positions`: (*batch, k) int64."""
    batch, bits = packed.shape[:-1], _index_bits(n)
    if k * bits > n:
        flags = np.unpackbits(packed.numpy(), axis=-1, count=n, bitorder="little")
        return torch.from_numpy(flags.nonzero()[-1].reshape(*batch, k))
    flags = np.unpackbits(packed.numpy(), axis=-1, count=k * bits, bitorder="little").reshape(*batch, k, bits)
    words = np.zeros((*batch, k, 32), np.uint8)
    words[..., :bits] = flags
    indices = np.packbits(words, axis=-1, bitorder="little").view("<u4").reshape(*batch, k)
    return torch.from_numpy(indices.astype(np.int64))
