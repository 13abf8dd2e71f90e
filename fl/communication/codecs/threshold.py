"""The entries beyond a threshold.

    keep the entries with |v| >= value, or, with `relative`, with |v| >= value max |v|;   decode: zero elsewhere

Biased.   |error| < sqrt(n - k) threshold for the k that are kept.   Bytes: 4 for k, 4k, and the positions.
Strom 2015 (Scalable distributed DNN training using commodity GPU cloud computing); with the error of what was left out: Sahu et al.
2021, arXiv:2108.00951.   Neutral: value=0, which sends everything and a bitmap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from fl.communication.blocks import largest_magnitude, pieces, rows_of
from fl.communication.codec import Encoded, OneByOne, Ragged
from fl.communication.positions import Coding, code_positions, decode_positions
from fl.registry import register


@register("codec", "threshold")
@dataclass(frozen=True, kw_only=True)
class Threshold(OneByOne):
    value: float
    relative: bool = False
    positions: Coding = "auto"

    draws = False

    def __post_init__(self):
        if not 0 <= self.value < math.inf:
            raise ValueError(
                f"value: {self.value} is not a number from 0 on; entries of smaller magnitude are left out"
            )
        if self.relative and self.value > 1:
            raise ValueError(
                f"value: {self.value} of the largest magnitude leaves nothing; with relative it is in [0, 1]"
            )

    def bars(self, x: np.ndarray) -> np.ndarray:
        """float32 (C,)"""
        largest = largest_magnitude(x, self)
        return (self.value * largest if self.relative else np.full_like(largest, self.value)).astype(np.float32)

    def encode(self, values, key=0):
        x = rows_of(values, self)
        (count, n), bars = x.shape, self.bars(x)[:, None]
        found = [
            np.flatnonzero(np.abs(x[at]) >= bars[at[0]]) + at[0].start * n + at[1].start for at in pieces(count, n)
        ]
        places = torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *found]))
        lengths = torch.bincount(places // max(n, 1), minlength=count)
        rows = (places % max(n, 1)).split(lengths.tolist())
        positions = [code_positions(self.positions, row, n) for row in rows]
        kept = values.reshape(-1)[places].split(lengths.tolist())
        counts = lengths.to(torch.int32).unsqueeze(-1)
        if values.ndim == 1:
            return Encoded({"count": counts[0], "positions": positions[0], "values": kept[0]})
        return Encoded({"count": counts, "positions": Ragged.of(positions), "values": Ragged.of(kept)})

    def unpack(self, encoded, n, key):
        values = encoded.parts["values"]
        positions = decode_positions(self.positions, encoded.parts["positions"], n, int(encoded.parts["count"][0]))
        return values.new_zeros(n).scatter_(-1, positions, values)

    def length(self, encoded, n):
        return int(encoded.parts["count"][0])

    def bound(self, values):
        return float(self.bars(rows_of(values, self))[0]) * len(values) ** 0.5
