"""Facts of clients' data on a worker: each client's are computed once for each period, within bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from fl.tensors.trees import Tree, leaves

CACHE_BYTES = 1 << 26  # of one worker; facts that were not used for the longest time are computed again
ENTRY_BYTES = 1 << 10  # of an entry beside the elements of its tensors; measured are 800 to 900 for one or two tensors


class ClientFacts:
    """Keeps the facts of clients by period; None, for a client without facts, is not kept.

    Args:
        compute: (period, client) -> facts, a pure function.
        limit: the most bytes to keep.

    Attributes:
        size: bytes that are kept, with those of the entries themselves.
    """

    def __init__(self, compute: Callable[[int, int], Tree], limit: int = CACHE_BYTES):
        self.compute, self.limit, self.size = compute, limit, 0
        self._known: OrderedDict[tuple[int, int], tuple[Tree, int]] = OrderedDict()

    def of(self, period: int, client: int) -> Tree:
        """Return the facts of a client's training data in a period."""
        key = period, client
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key][0]
        facts = self.compute(period, client)
        if facts is None:
            return None
        size = ENTRY_BYTES + sum(leaf.numel() * leaf.element_size() for leaf in leaves(facts))
        self._known[key] = facts, size
        self.size += size
        while self.size > self.limit and len(self._known) > 1:
            self.size -= self._known.popitem(last=False)[1][1]
        return facts
