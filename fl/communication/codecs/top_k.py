"""Keep the largest entries (top-k sparsification).

    keep the k = max(1, floor(ratio n)) entries of largest |v|, of equal ones the first;   decode: zero elsewhere

Biased.   |error|^2 <= (1 - k/n) |v|^2.   Bytes: 4k and the positions, coded as `positions` says
(`fl.communication.positions`).
Aji, Heafield 2017, arXiv:1704.05021; the bound: Stich, Cordonnier, Jaggi 2018, arXiv:1809.07599 (both with error
feedback). Differs: the k-th magnitude is found by sampling and counting instead of sorting; the kept entries are the
same. Neutral: ratio=1, up to the bitmap that it sends.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fl.checks import within
from fl.communication.blocks import BLOCK
from fl.communication.codec import Codec, Encoded, RaggedTensor
from fl.communication.positions import Coding, code_positions, coded_bytes, decode_positions
from fl.communication.selection import largest_of, largest_of_long
from fl.registry import register
from fl.tensors.sparse import Sparse


@dataclass(frozen=True, kw_only=True)
class Sparsifier(Codec):
    """Base of codecs that keep a share of the entries, k = max(1, floor(ratio n)).

    The ratio counts as the decimal number that the user wrote: .29 of 100 is 29, though 0.29 * 100 < 29 in floats.
    """

    ratio: float

    def __post_init__(self) -> None:
        within("(0, 1]", ratio=self.ratio, hint="it is the share of entries to keep")

    def num_kept(self, n: int) -> int:
        """Return k for n entries."""
        return min(n, max(1, int(Decimal(str(self.ratio)) * n)))


@register("codec", "top_k", "topk")
@dataclass(frozen=True, kw_only=True)
class TopK(Sparsifier):
    """Keep the entries of largest magnitude.

    Args:
        ratio: Share of the entries to keep, in (0, 1].
        positions: How positions are coded, see docs/communication.md.
    """

    positions: Coding = "packed"

    fixed_length: ClassVar[bool] = True

    def encode(self, values: Tensor) -> Encoded:
        n = values.shape[-1]
        positions = largest_positions(values, self.num_kept(n))
        return Encoded(
            {"positions": as_part(code_positions(self.positions, positions, n)), "values": values.gather(-1, positions)}
        )

    def decode(self, encoded: Encoded, n: int) -> Tensor:
        values = encoded.tensor("values")
        positions = from_part(self.positions, encoded.parts["positions"], n, values.shape[-1])
        return values.new_zeros(*values.shape[:-1], n).scatter_(-1, positions, values)

    def sizes(self, n: int, width: int = 4) -> tuple[int, int, int] | None:
        k = self.num_kept(n)
        beside = coded_bytes(self.positions, n, k)
        return None if beside is None else (beside, k, width)

    def length(self, encoded: Encoded, n: int) -> int:
        return self.num_kept(n)

    def bound(self, values: Tensor) -> float:
        n = len(values)
        return float(values.double().norm()) * (1 - self.num_kept(n) / n) ** 0.5 if n else 0.0


def as_part(packed: Tensor | list[Tensor]) -> Tensor | RaggedTensor:
    """Return coded positions as a part of an encoding."""
    return packed if isinstance(packed, Tensor) else RaggedTensor.stack(packed)


def from_part(coding: Coding, packed: Tensor | RaggedTensor, n: int, k: int) -> Tensor:
    """Decode the positions (*batch, k) of a part that `as_part` made."""
    if isinstance(packed, Tensor) and (packed.ndim == 1 or coded_bytes(coding, n, k) is not None):
        return decode_positions(coding, packed, n, k)
    count = len(packed.lengths) if isinstance(packed, RaggedTensor) else len(packed)
    return torch.stack([decode_positions(coding, packed[c], n, k) for c in range(count)])


def keep_largest(values: Tensor, ratio: float) -> Sparse:
    """Keep the max(1, floor(ratio n)) entries of largest magnitude in each row (*batch, n); of equal ones the first."""
    n = values.shape[-1]
    positions = largest_positions(values, TopK(ratio=ratio).num_kept(n))
    return Sparse(positions, values.gather(-1, positions), n)


def largest_positions(values: Tensor, k: int) -> Tensor:
    """Find the k entries of largest magnitude: ascending positions (*batch, k); of equal ones the first."""
    batch, n = values.shape[:-1], values.shape[-1]
    if k == 0 or values.numel() == 0:
        return torch.zeros(*batch, k, dtype=torch.int64)
    bits = torch.int64 if values.dtype == torch.float64 else torch.int32  # the bits without the sign order magnitudes
    exact = values if values.dtype in (torch.float32, torch.float64) else values.float()
    rows = exact.detach().reshape(-1, n).contiguous().view(bits).numpy()
    mask = np.array(torch.iinfo(bits).max, rows.dtype)
    if n <= BLOCK:
        step = max(1, 4 * BLOCK // n)
        found = np.concatenate([largest_of(rows[c : c + step] & mask, k) for c in range(0, len(rows), step)])
    else:
        found = np.stack([_largest_of_row(row, mask, k) for row in rows])
    positions = torch.from_numpy(found).reshape(*batch, k)
    if (
        not exact.gather(-1, positions).isfinite().all()
    ):  # NaN and infinity order as the largest, so they are found here
        raise ValueError(
            f"top_k orders entries by magnitude, but some entries of {tuple(values.shape)} are not finite: "
            "use a smaller learning rate or clip, or drop such clients (on_client_error: drop)"
        )
    return positions


def _largest_of_row(row: np.ndarray, mask: np.ndarray, k: int) -> np.ndarray:
    """Positions of the k largest magnitudes of one long row, given as integers whose sign bit is not in `mask`."""
    return largest_of_long(lambda at: row[at] & mask, len(row), k, row.itemsize * 8 - 1)
