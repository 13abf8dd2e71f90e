"""Keep entries that are drawn at random (random-k sparsification).

    keep k = max(1, floor(ratio n)) entries, all sets of k equally likely;   decode: n/k times the entry, zero elsewhere

Unbiased, E|error|^2 = (n/k - 1) |v|^2;   with `scale: false` biased, E|error|^2 = (1 - k/n) |v|^2 (for error feedback).
Bytes: 4k. Positions need none, because the receiver draws the same positions.
Wangni, Wang, Liu, Zhang 2018, arXiv:1710.09854; Stich, Cordonnier, Jaggi 2018, arXiv:1809.07599.   Neutral: ratio=1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fl.communication.blocks import BLOCK, check_finite, float_rows
from fl.communication.codec import Encoded
from fl.communication.codecs.top_k import Sparsifier
from fl.communication.keys import Key, keys_of
from fl.communication.selection import SAMPLE, largest_of, largest_of_long
from fl.registry import register
from fl.tensors.random import random_words


@register("codec", "random_k", "randomk")
@dataclass(frozen=True, kw_only=True)
class RandomK(Sparsifier):
    """Keep a random share of the entries.

    Args:
        ratio: Share of the entries to keep, in (0, 1].
        scale: Whether to multiply the kept entries by n/k, which makes the codec unbiased. Use false behind
            `error_feedback`.
    """

    scale: bool = True

    draws: ClassVar[bool] = True
    linear: ClassVar[bool] = True

    @property
    def unbiased(self) -> bool:
        return self.scale or self.ratio == 1

    def positions(self, keys: np.ndarray, n: int) -> Tensor:
        """Draw the positions of each key, ascending, (C, k)."""
        k = self.num_kept(n)
        if n <= BLOCK:
            step = max(1, 4 * BLOCK // max(n, 1))
            rows = [largest_of(_order(keys[c : c + step], 0, n), k) for c in range(0, len(keys), step)]
            return torch.from_numpy(np.concatenate(rows))
        return torch.from_numpy(np.stack([_draw_long(key, n, k) for key in keys[:, None]]))

    def encode(self, values: Tensor, key: Key = 0) -> Encoded:
        n = values.shape[-1]
        check_finite(float_rows(values, self), self)
        positions = self.positions(keys_of(key, values.shape[:-1].numel()), n)
        return Encoded({"values": values.gather(-1, positions.reshape(*values.shape[:-1], -1))})

    def decode(self, encoded: Encoded, n: int, key: Key = 0) -> Tensor:
        values = encoded.tensor("values")
        positions = self.positions(keys_of(key, values.shape[:-1].numel()), n).reshape(values.shape)
        if self.scale and n:
            values = values * (n / self.num_kept(n))
        return values.new_zeros(*values.shape[:-1], n).scatter_(-1, positions, values)

    def sizes(self, n: int, width: int = 4) -> tuple[int, int, int]:
        return 0, self.num_kept(n), width

    def bound(self, values: Tensor) -> float:
        n = len(values)
        worst = max(n / self.num_kept(n) - 1, 1.0) if self.scale and n else 1.0
        return float(values.double().norm()) * (worst if not n or self.num_kept(n) < n else 0.0)


def _order(keys: np.ndarray, first: int, last: int) -> np.ndarray:
    """Draw a non-negative number for each position, int32 (C, last - first); `first` is even."""
    return random_words(keys, first // 2, -(-last // 2)).view(np.int32)[:, : last - first] & np.int32(0x7FFFFFFF)


def _draw_long(key: np.ndarray, n: int, k: int) -> np.ndarray:
    """Draw k of n positions for one key (1,), without n random numbers in memory."""

    def order(at: slice) -> np.ndarray:
        if at.step in (None, 1):
            return _order(key, at.start, at.stop)[0]
        return _order(key, 0, SAMPLE)[0]  # the numbers are random, so any part of them is a sample

    return largest_of_long(order, n, k, 31)
