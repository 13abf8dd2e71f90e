"""Keep the entries beyond a threshold.

    keep the entries with |v| >= value, or, with `relative`, with |v| >= value max |v|;   decode: zero elsewhere

Biased.   |error| < sqrt(n - k) threshold for k kept entries.   Bytes: 4 for k, 4k, and the positions.
Strom 2015 (Scalable distributed DNN training using commodity GPU cloud computing); with error feedback: Sahu et al.
2021, arXiv:2108.00951.   Neutral: value=0, which sends all entries and a bitmap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fl.checks import within
from fl.communication.blocks import float_rows, largest_magnitude, pieces
from fl.communication.codec import Encoded, PerClientCodec, RaggedTensor
from fl.communication.keys import Key
from fl.communication.positions import Coding, code_positions, decode_positions
from fl.registry import register


@register("codec", "threshold")
@dataclass(frozen=True, kw_only=True)
class Threshold(PerClientCodec):
    """Keep large entries.

    Args:
        value: The threshold, at least 0; with `relative` a share of the largest magnitude, in [0, 1].
        relative: Whether `value` is a share of the largest magnitude.
        positions: How positions are coded, see docs/communication.md.
    """

    value: float
    relative: bool = False
    positions: Coding = "auto"

    draws: ClassVar[bool] = False

    def __post_init__(self) -> None:
        within("[0, inf)", value=self.value, hint="entries of smaller magnitude are left out")
        if self.relative:
            within("[0, 1]", value=self.value, hint="with `relative` it is a share of the largest magnitude")

    def thresholds(self, x: np.ndarray) -> np.ndarray:
        """Return the threshold of each row of x (C, n), float32 (C,)."""
        largest = largest_magnitude(x, self)
        return (self.value * largest if self.relative else np.full_like(largest, self.value)).astype(np.float32)

    def encode(self, values: Tensor, key: Key = 0) -> Encoded:
        x = float_rows(values, self)
        (count, n), least = x.shape, self.thresholds(x)[:, None]
        found = [
            np.flatnonzero(np.abs(x[at]) >= least[at[0]]) + at[0].start * n + at[1].start for at in pieces(count, n)
        ]
        places = torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *found]))
        lengths = torch.bincount(places // max(n, 1), minlength=count)
        rows = (places % max(n, 1)).split(lengths.tolist())
        positions = [_one_row(code_positions(self.positions, row, n)) for row in rows]
        kept = values.reshape(-1)[places].split(lengths.tolist())
        counts = lengths.to(torch.int32).unsqueeze(-1)
        if values.ndim == 1:
            return Encoded({"count": counts[0], "positions": positions[0], "values": kept[0]})
        return Encoded(
            {"count": counts, "positions": RaggedTensor.stack(positions), "values": RaggedTensor.stack(kept)}
        )

    def decode_one(self, encoded: Encoded, n: int, key: int) -> Tensor:
        values = encoded.tensor("values")
        positions = decode_positions(self.positions, encoded.tensor("positions"), n, int(encoded.tensor("count")[0]))
        return values.new_zeros(n).scatter_(-1, positions, values)

    def length(self, encoded: Encoded, n: int) -> int:
        return int(encoded.tensor("count")[0])

    def bound(self, values: Tensor) -> float:
        return float(self.thresholds(float_rows(values, self))[0]) * len(values) ** 0.5


def _one_row(packed: Tensor | list[Tensor]) -> Tensor:
    """The coded positions of a single row, which are never a list."""
    assert isinstance(packed, Tensor)
    return packed
