"""Entries drawn at random.

    keep k = max(1, floor(ratio n)) entries, every k of them equally likely;   decode: n/k times them, zero elsewhere

Unbiased, E|error|^2 = (n/k - 1) |v|^2;   with `scale: false` biased, E|error|^2 = (1 - k/n) |v|^2 (for error feedback).
Bytes: 4k; the receiver draws the same positions, which take none.
Wangni, Wang, Liu, Zhang 2018, arXiv:1710.09854; Stich, Cordonnier, Jaggi 2018, arXiv:1809.07599.   Neutral: ratio=1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from fl.communication.blocks import BLOCK, check_finite, largest_of, largest_of_long, rows_of, words
from fl.communication.codec import Encoded, keys_of
from fl.communication.codecs.top_k import Share
from fl.registry import register


@register("codec", "random_k", "randomk")
@dataclass(frozen=True, kw_only=True)
class RandomK(Share):
    scale: bool = True

    draws: ClassVar[bool] = True

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        return self.scale or self.ratio == 1

    def positions(self, keys: np.ndarray, n: int) -> torch.Tensor:
        """(C, k), ascending."""
        k = self.kept(n)
        if n <= BLOCK:
            step = max(1, 4 * BLOCK // max(n, 1))
            rows = [largest_of(_order(keys[c : c + step], 0, n), k) for c in range(0, len(keys), step)]
            return torch.from_numpy(np.concatenate(rows))
        return torch.from_numpy(np.stack([_drawn(key, n, k) for key in keys[:, None]]))

    def encode(self, values, key=0):
        n = values.shape[-1]
        check_finite(rows_of(values, self), self)
        positions = self.positions(keys_of(key, values.shape[:-1].numel()), n)
        return Encoded({"values": values.gather(-1, positions.reshape(*values.shape[:-1], -1))})

    def decode(self, encoded, n, key=0):
        values = encoded.parts["values"]
        positions = self.positions(keys_of(key, values.shape[:-1].numel()), n).reshape(values.shape)
        if self.scale and n:
            values = values * (n / self.kept(n))
        return values.new_zeros(*values.shape[:-1], n).scatter_(-1, positions, values)

    def sizes(self, n, width=4):
        return 0, self.kept(n), width

    def bound(self, values):
        n = len(values)
        worst = max(n / self.kept(n) - 1, 1.0) if self.scale and n else 1.0
        return float(values.double().norm()) * (worst if not n or self.kept(n) < n else 0.0)


def _order(keys: np.ndarray, first: int, last: int) -> np.ndarray:
    """A random number for each position: int32 (C, last - first), not negative; `first` is even."""
    return words(keys, first // 2, -(-last // 2)).view(np.int32)[:, : last - first] & np.int32(0x7FFFFFFF)


def _drawn(key: np.ndarray, n: int, k: int) -> np.ndarray:
    def order(at: slice) -> np.ndarray:
        if at.step in (None, 1):
            return _order(key, at.start, at.stop)[0]
        return _order(key, 0, 1 << 14)[0]  # as good a sample as any

    return largest_of_long(order, n, k, 31)
