"""SecAgg+: each client shares masks with k random neighbours, k = O(log n).

Bell, Bonawitz, Gascón, Lepoint, Raykova 2020, doi:10.1145/3372297.3417885 (IACR ePrint 2020/704), the protocol against
honest-but-curious clients and server. Differs from the paper: exact tails of the hypergeometric law, not bounds.

The graph: clients stand on a ring in random order, and each is a neighbour of the k/2 clients on either side. For
n clients, c n of them corrupt, d n drop out (rounded up): k and the threshold t are the smallest with

    n P[Hypergeometric(n - 1, c n, k) >= t] + n prod_(i < k/2) ((c + d) n - i) / (n - i) <= 2^-40       secure
    n P[Hypergeometric(n - 1, n - d n, k) < t] <= 2^-30                                                 correct

First term: no client has t corrupt neighbours. Second: no k/2 clients side by side on the ring are corrupt or missing,
so the rest stays connected. Last: each client has t neighbours that answer.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import hypergeom

from fl.checks import at_least, within
from fl.privacy.secure.protocol import SecureProtocol, complete_graph
from fl.registry import register
from fl.tensors import random

SECURE_BITS, CORRECT_BITS = 40, 30


@register("protocol", "secagg_plus")
@dataclass(frozen=True, kw_only=True)
class SecAggPlus(SecureProtocol):
    """Pairwise masks between neighbours in a random graph.

    A cohort that is too small for a sparse graph gets the complete one, with a threshold of 2/3 of it.

    Args:
        degree: number of neighbours of each client, even and at least 2. Default: from the other values.
        threshold: share of the neighbours that must answer, in (0, 1]. Default: from the other values.
        corrupt: share of the clients that may work with the server, in [0, 1).
        dropout: share of the clients that may drop out, in [0, 1).
    """

    degree: int | None = None
    threshold: float | None = None
    corrupt: float = 0.2
    dropout: float = 0.05

    def __post_init__(self) -> None:
        at_least(2, degree=self.degree)
        within("(0, 1]", threshold=self.threshold)
        within("[0, 1)", corrupt=self.corrupt, dropout=self.dropout)
        if self.degree is not None and self.degree % 2:
            raise ValueError(f"degree: {self.degree} is odd; a ring has the same number of neighbours on either side")

    def neighbours(self, count: int, cohort: int, seed: int) -> tuple[np.ndarray, ...]:
        return ring_graph(count, self._graph(cohort)[0], seed)

    def threshold_for(self, cohort: int) -> int:
        return self._graph(cohort)[1]

    def _graph(self, cohort: int) -> tuple[int, int]:
        """Return (neighbours, threshold)."""
        if self.degree is None:
            k, t = smallest_graph(cohort, self.corrupt, self.dropout)
        else:
            k = min(self.degree, max(cohort - 1, 1))
            t = math.ceil(2 * k / 3)
        return k, t if self.threshold is None else max(math.ceil(self.threshold * k - 1e-9), 1)


def ring_graph(count: int, degree: int, seed: int) -> tuple[np.ndarray, ...]:
    """Return the neighbours of each client on a ring in random order; all others if the ring is too small."""
    if degree >= count - 1:
        return complete_graph(count)
    order = random.permutation(count, seed, "ring")
    steps = np.arange(1, degree // 2 + 1)
    around = np.concatenate([steps, -steps])
    graph = np.empty((count, len(around)), np.int32)
    graph[order] = order[(np.arange(count)[:, None] + around) % count]
    return tuple(np.sort(graph, axis=1))


@functools.lru_cache
def smallest_graph(n: int, corrupt: float, dropout: float) -> tuple[int, int]:
    """Return (k, t), the fewest neighbours and a threshold that are secure and correct; see the module.

    >>> smallest_graph(1000, 0.2, 0.05), smallest_graph(4, 0.2, 0.05)  # 4 clients: no sparse graph
    ((58, 39), (3, 3))
    """
    bad, gone = math.ceil(corrupt * n - 1e-9), math.ceil(dropout * n - 1e-9)
    for k in range(2, n - 1, 2):
        apart = n * math.prod((bad + gone - i) / (n - i) for i in range(k // 2))
        if apart > 2.0**-SECURE_BITS:
            continue
        t = np.arange(1, k + 1)
        secure = n * hypergeom.sf(t - 1, n - 1, bad, k) + apart <= 2.0**-SECURE_BITS
        correct = n * hypergeom.cdf(t - 1, n - 1, n - 1 - gone, k) <= 2.0**-CORRECT_BITS
        if (secure & correct).any():
            return k, int(t[np.argmax(secure & correct)])
    return max(n - 1, 1), max(min(math.ceil(2 * n / 3), n - 1), 1)
