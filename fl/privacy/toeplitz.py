"""Banded matrix factorisation with Toeplitz matrices: coefficients, sensitivity and error.

Private training needs the prefix sums A x of the rounds' sums x_0 .. x_{n-1}, with A the lower triangular matrix of
ones. A factorisation A = B C releases B (C x + z) = A (x + C^-1 z), z standard normal: the rounds' noise C^-1 z is
correlated and cancels in the prefix sums (Denisov et al. 2022, arXiv:2202.08312).

Here C is lower triangular, Toeplitz and banded: C[i, j] = c_{i-j} for 0 <= i - j < b, and c_0 = 1. The coefficients
c_0 >= c_1 >= ... >= c_{b-1} >= 0 are those of the square root of A, or optimised (Choquette-Choo et al. 2023,
arXiv:2306.08153; Kalinin, Lampert 2024, arXiv:2405.13763).
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from fl.checks import at_least, positive

Floats = NDArray[np.float64]


def square_root(bands: int) -> Floats:
    """Return the first coefficients of the square root of A, c_j = binom(2j, j) / 4^j, (bands,).

    With as many bands as rounds, C is the square root of A.

    >>> square_root(4).tolist()
    [1.0, 0.5, 0.375, 0.3125]
    """
    positive(bands=bands)
    j = np.arange(1, bands)
    return np.cumprod(np.concatenate([[1.0], (2 * j - 1) / (2 * j)]))


@functools.lru_cache(maxsize=64)
def _optimised(bands: int, rounds: int) -> tuple[float, ...]:
    from scipy.optimize import minimize  # importing it takes a tenth of a second

    if bands == 1:
        return (1.0,)
    start = square_root(bands)
    ratios = start[1:] / start[:-1]

    def objective(ratios: Floats) -> tuple[float, Floats]:
        # Ratios in (0, 1] keep the coefficients positive and decreasing, so that C^-1 is bounded (Enestrom-Kakeya).
        c = np.cumprod(np.concatenate([[1.0], ratios]))
        error, gradient = _squared_error(c, rounds)
        norm = c @ c
        slopes = gradient / error + 2 * c / norm
        tail = np.cumsum((c * slopes)[::-1])[::-1]
        return float(np.log(error) + np.log(norm)), tail[1:] / ratios

    found = minimize(objective, ratios, jac=True, method="L-BFGS-B", bounds=[(1e-6, 1.0)] * (bands - 1))
    return (1.0, *np.cumprod(found.x).tolist())


def optimised(bands: int, rounds: int) -> Floats:
    """Return the coefficients with the least mean squared error of all prefix sums, (bands,).

    They minimise |c|^2 * (1/n) sum_t Var(prefix sum t), where |c| is the sensitivity of one participation. The minimum
    is the same for any number of participations that are at least `bands` rounds apart.

    >>> optimised(1, rounds=10).tolist()
    [1.0]

    Args:
        bands: number of bands, 1 up to the number of rounds.
        rounds: number of rounds n.
    """
    check_bands(bands, rounds)
    return np.array(_optimised(bands, rounds))


def inverse(coefficients: Floats, rounds: int) -> Floats:
    """Return the first column of C^-1, (rounds,).

    >>> inverse(np.array([1.0, 0.5]), 4).tolist()
    [1.0, -0.5, 0.25, -0.125]
    """
    impulse = np.zeros(rounds)
    impulse[0] = 1.0
    return _filtered(coefficients, impulse)


def variances(coefficients: Floats, rounds: int) -> Floats:
    """Return the variances of the noise of the prefix sums after rounds 0 .. n-1, for z of variance 1, (rounds,).

    >>> variances(np.array([1.0]), 3).tolist()  # independent noise adds up
    [1.0, 2.0, 3.0]
    """
    return np.cumsum(_filtered(coefficients, np.ones(rounds)) ** 2)


def sensitivity(coefficients: Floats, rounds: int, min_separation: int = 1, participations: int | None = None) -> float:
    """Return the L2 sensitivity of C x, where a client changes each of its x_t by a vector of norm 1 at most.

    The largest change is that of the rounds 0, b, 2b, ... with the same vector in each, since the coefficients are not
    negative and do not increase (Kalinin, Lampert 2024, arXiv:2405.13763, Theorem 2).

    >>> sensitivity(np.array([1.0]), rounds=10, participations=1)
    1.0
    >>> sensitivity(np.array([1.0]), rounds=10, min_separation=3)  # 4 participations
    2.0

    Args:
        coefficients: c_0 .. c_{b-1}, not negative, not increasing.
        rounds: number of rounds.
        min_separation: least distance in rounds between two participations of a client; 1 permits every round.
        participations: most participations of a client. Default: as many as fit.
    """
    if (coefficients < 0).any() or (np.diff(coefficients) > 0).any():
        raise ValueError("coefficients: they have to be 0 or more, and must not increase")
    starts = np.arange(most_participations(rounds, min_separation, participations)) * min_separation
    total = np.zeros(rounds)
    for start in starts:
        part = coefficients[: rounds - start]
        total[start : start + len(part)] += part
    return float(np.linalg.norm(total))


def mean_error(coefficients: Floats, rounds: int, min_separation: int = 1, participations: int | None = None) -> float:
    """Return the root of the mean variance of the prefix sums, for noise multiplier 1 and clients' norm 1.

    >>> round(mean_error(np.array([1.0]), 4, participations=1) ** 2, 6)  # (1 + 2 + 3 + 4) / 4
    2.5
    """
    size = sensitivity(coefficients, rounds, min_separation, participations)
    return size * float(np.sqrt(variances(coefficients, rounds).mean()))


def most_participations(rounds: int, min_separation: int, participations: int | None = None) -> int:
    """Return how often a client can take part in `rounds` rounds.

    >>> most_participations(10, min_separation=4), most_participations(10, 4, participations=2)
    (3, 2)
    """
    positive(min_separation=min_separation, participations=participations)
    fitting = -(-rounds // min_separation)
    return fitting if participations is None else min(fitting, participations)


def check_bands(bands: int, rounds: int) -> None:
    """Check that C can have `bands` bands.

    Raises:
        ValueError: it has fewer rounds, or `bands` is not positive.
    """
    at_least(1, bands=bands)
    if bands > rounds:
        raise ValueError(f"bands: {bands} is more than the {rounds} rounds; use 1..{rounds}")


def _filtered(coefficients: Floats, x: Floats) -> Floats:
    """Return C^-1 x."""
    from scipy.signal import lfilter  # importing it takes half a second

    return np.asarray(lfilter([1.0], coefficients, x), np.float64)


def _squared_error(coefficients: Floats, rounds: int) -> tuple[float, Floats]:
    """Return the sum of the variances of all prefix sums, and its gradient in the coefficients, (bands,).

    The sum is sum_s (n - s) r_s^2 with r = C^-1 1, and dr / dc_j is -C^-1 r, shifted by j.
    """
    r = _filtered(coefficients, np.ones(rounds))
    weighted = np.arange(rounds, 0, -1) * r
    slope = _filtered(coefficients, r)
    gradient = [-2 * float(weighted[j:] @ slope[: rounds - j]) for j in range(len(coefficients))]
    return float(weighted @ r), np.array(gradient)
