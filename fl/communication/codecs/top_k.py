"""The largest entries only (top-k sparsification).

    keep the k = max(1, floor(ratio n)) entries of largest |v|, of equal ones the first;   decode: zero elsewhere

Biased.   |error|^2 <= (1 - k/n) |v|^2.   Bytes: 4k and the positions, coded as `positions` says (`fl.communication.positions`).
Aji, Heafield 2017, arXiv:1704.05021; the bound: Stich, Cordonnier, Jaggi 2018, arXiv:1809.07599 (both with error feedback).
Differs: the k-th magnitude is found by a sample and a count and not by sorting; what is kept is the same.
Neutral: ratio=1, up to the bitmap that it sends.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fl.communication.blocks import BLOCK, largest_of, largest_of_long
from fl.communication.codec import Codec, Encoded, Ragged
from fl.communication.positions import Coding, code_positions, coded_bytes, decode_positions
from fl.registry import register
from fl.tensors.sparse import Sparse


@dataclass(frozen=True, kw_only=True)
class Share(Codec):
    """Base of codecs that keep a share of the entries: k = max(1, floor(ratio n)), with the ratio taken as the decimal it is
    written as: .29 of 100 is 29, though 0.29 * 100 < 29."""

    ratio: float

    def __post_init__(self):
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio: {self.ratio} is not in (0, 1]; it is the share of entries to keep")

    def kept(self, n: int) -> int:
        return min(n, max(1, int(Decimal(str(self.ratio)) * n)))


@register("codec", "top_k", "topk")
@dataclass(frozen=True, kw_only=True)
class TopK(Share):
    positions: Coding = "packed"

    fixed: ClassVar[bool] = True

    def encode(self, values):
        n = values.shape[-1]
        positions = largest(values, self.kept(n))
        return Encoded(
            {"positions": part(code_positions(self.positions, positions, n)), "values": values.gather(-1, positions)}
        )

    def decode(self, encoded, n):
        values = encoded.parts["values"]
        positions = unpart(self.positions, encoded.parts["positions"], n, values.shape[-1])
        return values.new_zeros(*values.shape[:-1], n).scatter_(-1, positions, values)

    def sizes(self, n, width=4):
        k = self.kept(n)
        beside = coded_bytes(self.positions, n, k)
        return None if beside is None else (beside, k, width)

    def length(self, encoded, n):
        return self.kept(n)

    def bound(self, values):
        n = len(values)
        return float(values.double().norm()) * (1 - self.kept(n) / n) ** 0.5 if n else 0.0


def part(packed: Tensor | list[Tensor]) -> Tensor | Ragged:
    """Positions as a part of an encoding."""
    return packed if isinstance(packed, Tensor) else Ragged.of(packed)


def unpart(coding: Coding, packed: Tensor | Ragged, n: int, k: int) -> Tensor:
    """The inverse of `part`: positions (*batch, k)."""
    if isinstance(packed, Tensor) and (packed.ndim == 1 or coded_bytes(coding, n, k) is not None):
        return decode_positions(coding, packed, n, k)
    count = len(packed.lengths) if isinstance(packed, Ragged) else len(packed)
    return torch.stack([decode_positions(coding, packed[c], n, k) for c in range(count)])


def keep_largest(values: Tensor, ratio: float) -> Sparse:
    """The max(1, floor(ratio n)) entries of largest magnitude of each row (*batch, n), of equal ones the first."""
    n = values.shape[-1]
    positions = largest(values, TopK(ratio=ratio).kept(n))
    return Sparse(positions, values.gather(-1, positions), n)


def largest(values: Tensor, k: int) -> Tensor:
    """Positions (*batch, k), ascending, of the k entries of largest magnitude; of equal ones the first."""
    batch, n = values.shape[:-1], values.shape[-1]
    if k == 0 or values.numel() == 0:
        return torch.zeros(*batch, k, dtype=torch.int64)
    bits = torch.int64 if values.dtype == torch.float64 else torch.int32  # which order magnitudes as they stand
    exact = values if values.dtype in (torch.float32, torch.float64) else values.float()
    rows = exact.detach().reshape(-1, n).contiguous().view(bits).numpy()
    mask = np.array(torch.iinfo(bits).max, rows.dtype)
    if n <= BLOCK:
        step = max(1, 4 * BLOCK // n)
        found = np.concatenate([largest_of(rows[c : c + step] & mask, k) for c in range(0, len(rows), step)])
    else:
        found = np.stack(
            [largest_of_long(lambda at, row=row: row[at] & mask, n, k, bits.itemsize * 8 - 1) for row in rows]
        )
    positions = torch.from_numpy(found).reshape(*batch, k)
    if (
        not exact.gather(-1, positions).isfinite().all()
    ):  # NaN and infinity are the largest: if there are any, they are here
        raise ValueError(
            f"top_k orders entries by magnitude, and of {tuple(values.shape)} some are not finite: "
            "use a smaller learning rate or clip, or drop such clients (on_client_error: drop)"
        )
    return positions
