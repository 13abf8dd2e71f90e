"""The masks of the clients of one exchange, as each client computes its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fl.privacy.secure.keys import KeyPair, prg_key, secret_number
from fl.privacy.secure.masks import expand


@dataclass(frozen=True)
class Secrets:
    """The secrets of one client, which it would draw at random.

    Args:
        root: root of all secrets of the exchange, 32 bytes.
        client: the client's id.
    """

    root: bytes
    client: int

    @cached_property
    def mask_keys(self) -> KeyPair:
        """The key pair of pairwise masks. Its secret is shared."""
        return KeyPair(secret_number(self.root, self.client, "mask keys"), "mask")

    @cached_property
    def channel_keys(self) -> KeyPair:
        """The key pair of sealed messages."""
        return KeyPair(secret_number(self.root, self.client, "channel keys"), "channel")

    @cached_property
    def self_mask(self) -> int:
        """The secret of the self mask. It is shared."""
        return secret_number(self.root, self.client, "self mask")


@dataclass(frozen=True)
class Masking:
    """What the clients of an exchange need to mask their words.

    Args:
        root: root of all secrets of the exchange, 32 bytes.
        clients: ids of the clients that exchanged keys, ascending, (n,).
        neighbours: places in `clients` of each one's neighbours, ascending.
        public_keys: public keys of the clients' pairwise masks.
        width: bits of a word.
    """

    root: bytes
    clients: np.ndarray
    neighbours: tuple[np.ndarray, ...]
    public_keys: tuple[bytes, ...]
    width: int

    @cached_property
    def places(self) -> Mapping[int, int]:
        """Client id -> its place."""
        return {int(client): place for place, client in enumerate(self.clients)}

    def add(self, client: int, words: np.ndarray) -> None:
        """Add the masks of a client to its words, unsigned (n,), in place."""
        place, secrets = self.places[client], Secrets(self.root, client)
        words += expand(prg_key(secrets.self_mask), len(words), self.width)
        for other in self.neighbours[place].tolist():
            add_pairwise(words, secrets.mask_keys, self.public_keys[other], place < other, self.width)


def add_pairwise(words: np.ndarray, own: KeyPair, public: bytes, first: bool, width: int) -> None:
    """Add the mask of a pair to the words of its first client, or subtract it from those of the second, in place."""
    mask = expand(own.agree(public), len(words), width)
    if first:
        words += mask
    else:
        words -= mask
