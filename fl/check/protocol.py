"""Laws of protocols of secure aggregation."""

from __future__ import annotations

import numpy as np

from fl.check.finding import Broken, Law, require_equal
from fl.privacy.secure.masks import cut
from fl.privacy.secure.protocol import SecureProtocol
from fl.privacy.secure.session import Session, root_of

EXAMPLES: dict[str, float] = {}
COHORTS = (3, 10, 57)
WIDTH = 20


def neighbours_are_mutual(part: SecureProtocol) -> None:
    """Each client's neighbours are distinct others in ascending order, and it is a neighbour of theirs."""
    for count in COHORTS:
        graph = part.neighbours(count, count, 7)
        require_equal(len(graph), count, "number of clients with neighbours")
        for place, row in enumerate(graph):
            if place in row or list(row) != sorted(set(row.tolist())) or (len(row) and not 0 <= row[-1] < count):
                raise Broken(f"client {place} of {count} has the neighbours {row.tolist()}")
            if missing := [int(other) for other in row if place not in graph[other]]:
                raise Broken(f"client {place} of {count} is no neighbour of its neighbours {missing}")


def the_graph_follows_from_the_seed(part: SecureProtocol) -> None:
    """The same seed gives the same graph."""
    one, two = (part.neighbours(COHORTS[-1], COHORTS[-1], 7) for _ in range(2))
    require_equal([row.tolist() for row in two], [row.tolist() for row in one], "the graph drawn twice")


def all_answers_are_enough(part: SecureProtocol) -> None:
    """If nobody drops out, the shares reveal every secret."""
    for count in COHORTS:
        everybody = np.ones(count, bool)
        if reason := _session(part, count).too_few(everybody, everybody):
            raise Broken(f"of {count} clients all answer: {reason}")


def the_masks_cancel(part: SecureProtocol) -> None:
    """The sum without masks is the sum of the words, also if a client leaves after the key exchange."""
    count = COHORTS[1]
    session = _session(part, count)
    assert session.masking is not None
    words = np.arange(count * 5, dtype=np.uint32).reshape(count, 5)
    masked = words.copy()
    for place, own in enumerate(masked):
        session.masking.add(int(session.clients[place]), own)
    for included in (np.ones(count, bool), np.arange(count) != 4):
        if session.too_few(included, included):
            continue
        total = session.unmask(masked[included].sum(0, dtype=np.uint32), included, included)
        expected = cut(words[included].sum(0, dtype=np.uint32), WIDTH)
        require_equal(total.tolist(), expected.tolist(), f"the sum of {included.sum()} of {count} clients")


def _session(part: SecureProtocol, count: int) -> Session:
    part.check(count)
    return Session(part, 3 * np.arange(count), count, WIDTH, root_of(1, 2, "reproducible"), 5)


LAWS: list[Law] = [
    neighbours_are_mutual,
    the_graph_follows_from_the_seed,
    all_answers_are_enough,
    the_masks_cancel,
]
