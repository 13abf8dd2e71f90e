"""One exchange of secure aggregation on the server's side, from the key exchange to the sum.

    joined      clients that exchanged keys and shares
    included    those whose masked words are in the sum
    answering   those of them that answer the unmasking

For an included client the shares of its self mask are revealed, for a missing one those of its mask keys.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from fl.privacy.secure.keys import opened, prg_key, sealed
from fl.privacy.secure.masking import KeyPair, Masking, Secrets, add_pairwise
from fl.privacy.secure.masks import cut, expand
from fl.privacy.secure.messages import MessageBytes, message_bytes
from fl.privacy.secure.protocol import SecureProtocol
from fl.privacy.secure.shamir import PRIME, SHARE_BYTES, combine, share
from fl.tensors.random import hash64

Kind = Literal["self", "mask keys"]


@dataclass(frozen=True)
class Session:
    """The clients of one exchange that exchanged keys.

    Args:
        protocol: its graph and threshold.
        clients: their ids, ascending, (n,).
        cohort: number of clients that were asked to.
        width: bits of a word.
        root: root of all secrets, 32 bytes; None: no masks are computed.
        graph_seed: 64 bits for the graph.
    """

    protocol: SecureProtocol
    clients: np.ndarray
    cohort: int
    width: int
    root: bytes | None
    graph_seed: int

    @cached_property
    def neighbours(self) -> tuple[np.ndarray, ...]:
        """Places in `clients` of each one's neighbours."""
        return self.protocol.neighbours(len(self.clients), self.cohort, self.graph_seed)

    @cached_property
    def threshold(self) -> int:
        """Number of shares that reveal a secret."""
        return self.protocol.threshold_for(self.cohort)

    @cached_property
    def masking(self) -> Masking | None:
        """What the clients need to mask their words; None without masks."""
        if self.root is None:
            return None
        public = tuple(secrets.mask_keys.public for secrets in self._secrets)
        return Masking(self.root, self.clients, self.neighbours, public, self.width)

    @cached_property
    def sizes(self) -> MessageBytes:
        """Bytes of each client's messages."""
        counts = np.array([len(row) for row in self.neighbours], np.int64)
        return message_bytes(counts, self.protocol.own_share)

    # -- unmasking -----------------------------------------------------------------------------------------------------
    def holders(self, place: int) -> list[int]:
        """Return the places of the clients with a share of a client's secrets; share x belongs to the x-th, from 1."""
        others = self.neighbours[place].tolist()
        return sorted([*others, place]) if self.protocol.own_share else others

    def too_few(self, included: np.ndarray, answering: np.ndarray) -> str:
        """Return why the sum cannot be unmasked, in words; "" if it can.

        Args:
            included: whether each client's words are in the sum, bool (n,).
            answering: whether each answers the unmasking, bool (n,).
        """
        if included.sum() < 2:
            return "the vector of one client arrived, and a sum of one is no sum"
        answers = answering & included
        for place in range(len(self.clients)):
            if not included[place] and not included[self.neighbours[place]].any():
                continue  # nothing of it is in the sum
            found = int(answers[self.holders(place)].sum())
            if found < self.threshold:
                return (
                    f"{found} shares of a secret of client {self.clients[place]} arrived, {self.threshold} are needed"
                )
        return ""

    def unmask(self, total: np.ndarray, included: np.ndarray, answering: np.ndarray) -> np.ndarray:
        """Return the sum of the words without masks, unsigned (n,), from the sum of the masked words.

        Secrets are reconstructed from the shares of clients that answer; `too_few` must have found enough. Without
        masks it returns the sum itself, cut to the width.
        """
        total = total.copy()
        if self.root is None:
            return cut(total, self.width)
        assert self.masking is not None
        answers = answering & included
        for place in range(len(self.clients)):
            if included[place]:
                secret = self._reconstructed(place, "self", answers)
                total -= expand(prg_key(secret), len(total), self.width)
                continue
            others = [other for other in self.neighbours[place].tolist() if included[other]]
            if not others:
                continue
            keys = KeyPair(self._reconstructed(place, "mask keys", answers), "mask")
            for other in others:  # the missing client's own masks cancel those that its neighbours added
                add_pairwise(total, keys, self.masking.public_keys[other], place < other, self.width)
        return cut(total, self.width)

    def _reconstructed(self, place: int, kind: Kind, answers: np.ndarray) -> int:
        """Return a client's secret, from as many shares as are needed."""
        holders = [(x, holder) for x, holder in enumerate(self.holders(place), 1) if answers[holder]]
        return combine({x: self._share(place, kind, x, holder) for x, holder in holders[: self.threshold]})

    def _share(self, place: int, kind: Kind, x: int, holder: int) -> int:
        """Return the share of a client's secret that a holder reveals, after it has travelled through the server."""
        secrets = self._secrets[place]
        both = [share(secrets.self_mask, self._coefficients(place, "self"), x)]
        both.append(share(secrets.mask_keys.secret, self._coefficients(place, "mask keys"), x))
        if place != holder:
            ids = b"".join(int(self.clients[p]).to_bytes(4, "little") for p in (place, holder))
            content = ids + b"".join(number.to_bytes(SHARE_BYTES, "little") for number in both)
            first, key = place < holder, self._channel(min(place, holder), max(place, holder))
            arrived = opened(key, first, sealed(key, first, content))[len(ids) :]
            both = [int.from_bytes(arrived[a : a + SHARE_BYTES], "little") for a in (0, SHARE_BYTES)]
        return both[("self", "mask keys").index(kind)]

    # -- secrets of the clients: the server of a real protocol has none of them ----------------------------------------
    @cached_property
    def _secrets(self) -> tuple[Secrets, ...]:
        assert self.root is not None
        return tuple(Secrets(self.root, int(client)) for client in self.clients)

    @cached_property
    def _channels(self) -> dict[tuple[int, int], bytes]:
        return {}

    def _channel(self, one: int, other: int) -> bytes:
        """Return the key that two clients agreed on for sealed messages; it is computed once for both ends."""
        if (one, other) not in self._channels:
            secrets = self._secrets
            self._channels[one, other] = secrets[one].channel_keys.agree(secrets[other].channel_keys.public)
        return self._channels[one, other]

    @cached_property
    def _polynomials(self) -> dict[tuple[int, Kind], list[int]]:
        return {}

    def _coefficients(self, place: int, kind: Kind) -> list[int]:
        """Return the random coefficients by which a client shares a secret."""
        if (place, kind) not in self._polynomials:
            assert self.root is not None
            address = repr((int(self.clients[place]), "coefficients", kind)).encode()
            size = SHARE_BYTES * (self.threshold - 1)
            stream = hashlib.shake_128(self.root + address).digest(size)
            numbers = (int.from_bytes(stream[a : a + SHARE_BYTES], "little") for a in range(0, size, SHARE_BYTES))
            self._polynomials[place, kind] = [number & PRIME for number in numbers]
        return self._polynomials[place, kind]


def root_of(seed: int, number: int, seeds: Literal["reproducible", "cryptographic"]) -> bytes:
    """Return the root of all secrets of an exchange, 32 bytes.

    Args:
        seed: seed of the run.
        number: number of the exchange in the run.
        seeds: "reproducible": it follows from seed and number. "cryptographic": it comes from the operating system.
    """
    if seeds == "cryptographic":
        return os.urandom(32)
    return b"".join(int(hash64(seed, number, "secure", word)).to_bytes(8, "little") for word in range(4))
