"""Quantisation: floating numbers to integers whose sum cannot overflow.

    step = clip / levels,  levels = 2^(bits - 1) - 1        q = round(w u / step),  |q| <= w levels,  u clipped first

w is the weight with which the reduction counts the update. Rounding comes after weighting, so a mean of n clients has
an error of at most n step / (2 sum w) with rounding to the nearest integer, and n step / sum w at random.

The modulus 2^width holds every sum: n_max (w_max levels + 1) < 2^(width - 1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fl.communication.draws import dither

BLOCK = 1 << 16  # numbers that are rounded at a time: they stay in the cache


@dataclass(frozen=True)
class Quantiser:
    """Turns numbers into integers and sums of integers into numbers.

    Args:
        clip: largest magnitude of an element before weighting, for all groups or by group.
        bits: bits of an element with weight 1; levels = 2^(bits - 1) - 1.
        stochastic: round up or down at random, without bias; else to the nearest integer.
        width: bits of a word, b: sums are modulo 2^b.
        largest_weight: largest weight of a client.
    """

    clip: float | Mapping[str, float]
    bits: int
    stochastic: bool
    width: int
    largest_weight: int

    @property
    def levels(self) -> int:
        """Levels on each side of 0 of an element with weight 1."""
        return (1 << (self.bits - 1)) - 1

    def step(self, group: str) -> float:
        """Return the distance of two levels of a group."""
        return clip_of(self.clip, group) / self.levels

    def quantised(
        self, values: np.ndarray, group: str, weight: float, key: int, out: np.ndarray, factor: float = 1.0
    ) -> int:
        """Write the integers of weighted values (n,) to `out`, (n,) unsigned; return how many elements were clipped.

        Args:
            values: w u, float32 or float64.
            group: group of the update.
            weight: w.
            key: 64 bits, the address of random rounding.
            out: receives the integers modulo 2^32 or 2^64.
            factor: multiplies the values.
        """
        inverse, limit, clipped = factor / self.step(group), self.levels * weight, 0
        integers, keys = out.view(f"i{out.itemsize}"), np.array([key], np.uint64)
        for a in range(0, len(values), BLOCK):
            x = values[a : a + BLOCK].astype(np.float64)
            x *= inverse
            if max(x.max(), -x.min()) > limit:
                # half a level of slack: weighting in float32 may round an element of magnitude `clip` up
                clipped += int(np.count_nonzero(np.abs(x) > limit + 0.5))
                np.clip(x, -limit, limit, out=x)
            if self.stochastic:
                x += dither(keys, a, a + len(x))[0]
                x += 0.5
                np.floor(x, out=x)
            else:
                np.rint(x, out=x)
            integers[a : a + BLOCK] = x.astype(integers.dtype)
        return clipped


def clip_of(clip: float | Mapping[str, float], group: str) -> float:
    """Return the clip range of a group.

    >>> clip_of({"model": 0.5}, "model"), clip_of(2.0, "control")
    (0.5, 2.0)
    """
    if not isinstance(clip, Mapping):
        return clip
    if group not in clip:
        raise ValueError(f"clip: no range for the group {group!r}, only for {sorted(clip)}")
    return clip[group]


def smallest_width(bits: int, cohort: int, largest_weight: int, noise_std: float = 0.0) -> int:
    """Return the smallest width whose modulus holds every sum of a cohort, and 12 standard deviations of its noise.

    >>> smallest_width(bits=16, cohort=100, largest_weight=1)  # 100 (32767 + 1) = 3,276,800 < 2^22
    23
    """
    noise = math.ceil(12 * math.sqrt(cohort) * noise_std)
    return (cohort * (largest_weight * ((1 << (bits - 1)) - 1) + 1) + noise).bit_length() + 1
