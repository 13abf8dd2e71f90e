"""Tree aggregation: the factorisation of prefix sums by a binary tree (DP-FTRL).

The rounds are the leaves of a binary tree. Node i of level l holds the sum of the rounds i 2^l .. (i + 1) 2^l - 1 and
noise of its own. A prefix sum adds at most log2(n) + 1 nodes, so its noise grows with log(n) instead of n
(Kairouz et al. 2021, arXiv:2103.00039). Every `restart` rounds a new tree begins.

    node 1,0 = node 0,0 + node 0,1               prefix sum of 3 rounds = node 1,0 + node 0,2

Variance reduction (Honaker 2015): a node is also the sum of its children, so that the estimate of least variance
combines both,  e = w * own + (1 - w) * (e_left + e_right).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl.checks import positive
from fl.privacy.toeplitz import most_participations


def own_weight(level: int) -> float:
    """Return w, the weight of a node's own noise in the combined estimate. Leaves are level 0.

    The combined estimate at level l has variance v_l = 1 / (2 (1 - 2^-(l + 1))), and w_l = v_l.

    >>> own_weight(0), round(own_weight(1), 6)
    (1.0, 0.666667)
    """
    return 1.0 / (2.0 - 2.0**-level)


def merges(step: int) -> int:
    """Return how many nodes above the leaf become complete with leaf `step`, counted from 0 in its tree.

    >>> [merges(step) for step in range(8)]
    [0, 1, 0, 2, 0, 1, 0, 3]
    """
    return ((step + 1) & -(step + 1)).bit_length() - 1


def levels(leaves: int) -> int:
    """Return the number of levels of complete nodes in a tree of `leaves` rounds.

    >>> levels(1), levels(7), levels(8)
    (1, 3, 4)
    """
    return leaves.bit_length()


def sensitivity(
    rounds: int, restart: int | None = None, min_separation: int = 1, participations: int | None = None
) -> float:
    """Return an upper bound of the L2 sensitivity of all nodes, for a client that changes each x_t by norm 1 at most.

    The change of a node is at most the number m of the client's rounds below it. In a level of nodes of w rounds,
    m <= ceil(w / b), and all m of the level sum to k at most; sum m^2 is largest if as many nodes as possible have the
    largest m. The bound is exact for one participation, and if w / b is an integer or below 1 in all levels.

    >>> sensitivity(8, participations=1)  # 4 levels
    2.0
    >>> round(sensitivity(8, restart=4, min_separation=4) ** 2, 6)  # 2 trees of 3 levels
    6.0

    Args:
        rounds: number of rounds.
        restart: rounds of a tree. Default: one tree.
        min_separation: least distance b in rounds between two participations of a client; 1 permits every round.
        participations: most participations k of a client. Default: as many as fit.
    """
    leaves = min(rounds, restart or rounds)
    positive(restart=restart)
    most = most_participations(rounds, min_separation, participations)
    total = 0
    for level in range(levels(leaves)):
        in_node = min(most, -(-(1 << level) // min_separation))
        nodes, rest = divmod(most, in_node)
        total += nodes * in_node**2 + rest**2
    return float(np.sqrt(total))


def variances(rounds: int, restart: int | None = None, honaker: bool = True) -> NDArray[np.float64]:
    """Return the variances of the noise of the prefix sums after rounds 0 .. n-1, for nodes of variance 1, (rounds,).

    >>> variances(4, honaker=False).tolist()
    [1.0, 1.0, 2.0, 1.0]
    """
    leaves = restart or rounds
    node = [own_weight(level) if honaker else 1.0 for level in range(levels(leaves))]
    within = np.array([_bits(step + 1, node) for step in range(min(leaves, rounds))])
    finished, step = np.divmod(np.arange(rounds), leaves)
    return np.asarray(finished * within[-1] + within[step], np.float64)


def increment_variance(step: int, honaker: bool = True) -> float:
    """Return the variance by which the noise of the prefix sum changes with leaf `step`, for nodes of variance 1.

    The new estimate replaces those of the nodes that it contains, the left brothers of the nodes on its right edge.

    >>> [increment_variance(step, honaker=False) for step in range(4)]
    [1.0, 2.0, 1.0, 3.0]
    """
    new = 1.0  # variance from the round's own draws
    brothers = 0.0  # from the left brothers, which are subtracted
    weights = [own_weight(level) if honaker else 1.0 for level in range(1, merges(step) + 1)]
    for level, weight in enumerate(weights):
        new = weight**2 + (1 - weight) ** 2 * new
        kept = float(np.prod([1 - later for later in weights[level:]]))
        brothers += (1 - kept) ** 2 * (own_weight(level) if honaker else 1.0)
    return new + brothers


def mean_error(
    rounds: int,
    restart: int | None = None,
    honaker: bool = True,
    min_separation: int = 1,
    participations: int | None = None,
) -> float:
    """Return the root of the mean variance of the prefix sums, for noise multiplier 1 and clients' norm 1.

    >>> round(mean_error(4, honaker=False, participations=1) ** 2, 6)  # 3 levels * (1 + 1 + 2 + 1) / 4
    3.75
    """
    size = sensitivity(rounds, restart, min_separation, participations)
    return size * float(np.sqrt(variances(rounds, restart, honaker).mean()))


def _bits(count: int, node: list[float]) -> float:
    """Return the sum of the variances of the nodes that hold the first `count` leaves."""
    return sum(node[level] for level in range(count.bit_length()) if count >> level & 1)
