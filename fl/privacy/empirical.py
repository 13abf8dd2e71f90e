"""A lower bound of epsilon from one run with canaries.

Each of m canaries is in the data with probability 1/2, independently. After the run an auditor who knows everything
but these m coins guesses r of them and abstains from the others. If the run has (epsilon, delta) differential privacy,
v or more right guesses are improbable; so many right guesses refute small epsilons (Steinke, Nasr, Jagielski 2023,
arXiv:2305.08846, Theorem 5.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl.checks import within

LARGEST = 100.0  # no bound above it is looked for


@dataclass(frozen=True)
class Guesses:
    """The guesses that gave the best bound.

    Args:
        epsilon: lower bound of epsilon, 0 if nothing is refuted.
        made: number r of guesses.
        right: number v of right ones.
    """

    epsilon: float
    made: int
    right: int


def p_value(canaries: int, made: int, right: int, epsilon: float, delta: float) -> float:
    """Return a bound of the probability of at least `right` right guesses under (epsilon, delta) privacy.

    beta + 2 m delta * max_i P(v - i <= W < v) / i with W ~ Binomial(r, e^epsilon / (1 + e^epsilon)), beta = P(W >= v).

    >>> p_value(10, made=10, right=10, epsilon=0.0, delta=0.0) == 2.0**-10
    True
    """
    from scipy.stats import binom  # importing it takes half a second

    chance = 1.0 / (1.0 + np.exp(-epsilon))
    beta = float(binom.sf(right - 1, made, chance))
    if right == 0 or delta == 0:
        return min(beta, 1.0)
    below = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), made, chance))
    alpha = float((below / np.arange(1, right + 1)).max())
    return min(beta + 2 * canaries * delta * alpha, 1.0)


def lower_bound(canaries: int, made: int, right: int, delta: float, confidence: float = 0.95) -> float:
    """Return the largest epsilon that `right` right guesses of `made` refute, 0 if none.

    >>> round(lower_bound(100, made=100, right=100, delta=0.0), 3)  # q^100 = 0.05
    3.493

    Args:
        canaries: number m of canaries.
        made: number r of guesses, at most m.
        right: number of right ones.
        delta: delta of the guarantee.
        confidence: probability with which the bound holds.
    """
    within("(0, 1)", confidence=confidence)
    if not 0 <= right <= made <= canaries:
        raise ValueError(f"right: {right} of made: {made} of canaries: {canaries}; they must not increase")
    low, high = 0.0, LARGEST
    if p_value(canaries, made, right, 0.0, delta) > 1 - confidence:
        return 0.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        refuted = p_value(canaries, made, right, middle, delta) <= 1 - confidence
        low, high = (middle, high) if refuted else (low, middle)
    return low


def best_guesses(
    scores: NDArray[np.float64], included: NDArray[np.bool_], delta: float, confidence: float = 0.95
) -> Guesses:
    """Return the best bound over several numbers of guesses, each at its share of the error probability.

    The canaries with the highest scores are guessed to be in the data, and as many with the lowest not to be; or only
    the former. The numbers of guesses (all canaries, a third, a tenth, and halves of them) do not depend on the scores.

    Args:
        scores: the larger, the more likely a canary is in the data, (m,).
        included: whether it is, (m,).
        delta: delta of the guarantee.
        confidence: probability with which the result is a lower bound.
    """
    count, order = len(scores), np.argsort(-scores, kind="stable")
    right_in = np.cumsum(included[order])  # of the first k guesses "in"
    right_out = np.cumsum(~included[order[::-1]])
    tries: list[tuple[int, int]] = []  # guesses (in, out)
    for part in (1, 3, 10):
        half = -(-count // (2 * part))
        tries += [(half, half if part > 1 else count - half), (half, 0)]
    each = 1 - (1 - confidence) / len(tries)
    best = Guesses(0.0, 0, 0)
    for top, bottom in tries:
        right = int(right_in[top - 1]) if top else 0
        right += int(right_out[bottom - 1]) if bottom else 0
        found = Guesses(lower_bound(count, top + bottom, right, delta, each), top + bottom, right)
        best = max(best, found, key=lambda one: one.epsilon)
    return best
