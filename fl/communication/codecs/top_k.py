"""The largest entries only (top-k sparsification).

    keep the k = max(1, floor(ratio n)) entries of largest |v|, of equal ones the first;   decode: zero elsewhere

Aji, Heafield 2017, arXiv:1704.05021 (there with error feedback).  Neutral: ratio=1, up to the bitmap that it sends.
Positions are packed as `fl.communication.positions` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

import torch
from torch import Tensor

from fl.codec import Codec, Encoded
from fl.communication.positions import pack_positions, position_bytes, unpack_positions
from fl.messages import Sparse
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
        return position_bytes(n, k), k, width


def keep_largest(values: Tensor, ratio: float) -> Sparse:
    """The max(1, floor(ratio n)) entries of largest magnitude of each row (*batch, n), of equal ones the first."""
    n = values.shape[-1]
    positions = largest(values, TopK(ratio=ratio).kept(n))
    return Sparse(positions, values.gather(-1, positions), n)


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
