"""Protocols of secure aggregation: with whom each client shares masks, and how many shares reveal a secret.

All protocols have the same messages:

    keys        client -> server: two public keys         server -> client: the keys of its neighbours
    shares      client -> server: for each neighbour an encrypted share of its secrets
                                                          server -> client: the shares that its neighbours sent it
    masked      client -> server: the masked vector
    unmasking   server -> client: who is in the sum     client -> server: one share per secret

A client that drops out after the key exchange leaves masks in the sum. Its neighbours' shares reveal the secret of its
pairwise masks. For each client in the sum they reveal the secret of its self mask. No client answers for both.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np


class SecureProtocol:
    """Base of protocols. Subclasses are frozen dataclasses of hyper-parameters.

    Attributes:
        own_share: whether a client keeps a share of its own secrets, beside those of its neighbours.
    """

    own_share: ClassVar[bool] = False

    def check(self, largest: int) -> None:
        """Check before round 0 that the protocol can serve a cohort of `largest` clients.

        Raises:
            ValueError: it cannot; the message begins with the hyper-parameter.
        """

    def neighbours(self, count: int, cohort: int, seed: int) -> tuple[np.ndarray, ...]:
        """Return the neighbours of each client, ascending: one int array per client. i is in j's if j is in i's.

        Args:
            count: number of clients that advertise keys; they are numbered from 0.
            cohort: number of clients that were asked to.
            seed: 64 bits for random draws.
        """
        raise NotImplementedError

    def threshold_for(self, cohort: int) -> int:
        """Return how many shares reveal a secret, at least 1, for a cohort of this size."""
        raise NotImplementedError


def complete_graph(count: int) -> tuple[np.ndarray, ...]:
    """Return the graph in which all clients are neighbours.

    >>> [row.tolist() for row in complete_graph(3)]
    [[1, 2], [0, 2], [0, 1]]
    """
    everybody = np.arange(count, dtype=np.int32)
    return tuple(np.delete(everybody, i) for i in range(count))
