"""Shamir's secret sharing over the prime field of 2^127 - 1.

    f(x) = secret + a_1 x + ... + a_(t-1) x^(t-1) mod p,  the a_j uniform;     share of point x: f(x)

Any t shares give the secret, f(0), by Lagrange interpolation. Fewer shares say nothing about it.
Shamir 1979, doi:10.1145/359168.359176.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

PRIME = 2**127 - 1
SHARE_BYTES = 16


def share(secret: int, coefficients: Sequence[int], point: int) -> int:
    """Return the share of one point.

    >>> [share(42, [3], x) for x in (1, 2, 3)]
    [45, 48, 51]

    Args:
        secret: the secret, at least 0 and below `PRIME`.
        coefficients: a_1 ... a_(t-1), uniform below `PRIME`.
        point: x, positive.
    """
    value = 0
    for coefficient in reversed(coefficients):  # one reduction at the end: points are small, so the numbers stay short
        value = (value + coefficient) * point
    return (value + secret) % PRIME


def combine(shares: Mapping[int, int]) -> int:
    """Return the secret from t shares by their points.

    >>> combine({1: 45, 3: 51})
    42
    """
    weights = _at_zero(tuple(shares))
    return sum(weight * value for weight, value in zip(weights, shares.values())) % PRIME


@functools.lru_cache(maxsize=4096)  # in a full graph the same clients answer for every secret
def _at_zero(points: tuple[int, ...]) -> tuple[int, ...]:
    """Return the Lagrange coefficients at 0: prod over other points y of y / (y - x)."""
    weights = []
    for x in points:
        above = below = 1
        for y in points:
            if y != x:
                above, below = above * y % PRIME, below * (y - x) % PRIME
        weights.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(weights)
