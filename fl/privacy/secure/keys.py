"""Keys of a simulated protocol: X25519 key pairs, agreed keys, sealed messages.

All secrets of an exchange derive from one root of 32 bytes, by address. So a worker makes a client's keys without being
sent them, and a retry makes the same keys. This is for simulations only: real clients draw their secrets themselves.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fl.privacy.secure.shamir import PRIME

KEY_BYTES = 32  # of a public key
TAG_BYTES = 16  # by which a sealed message is longer than its content


def derived(root: bytes, *address: int | str, size: int = 16) -> bytes:
    """Return `size` bytes that follow from a root and an address: BLAKE2b with the root as its key.

    >>> derived(bytes(32), 7, "self") == derived(bytes(32), 7, "self")
    True
    """
    return hashlib.blake2b(repr(address).encode(), key=root, digest_size=size).digest()


def secret_number(root: bytes, *address: int | str) -> int:
    """Return a secret that can be shared: 127 bits, below `PRIME`."""
    number = int.from_bytes(derived(root, *address), "little") & PRIME
    return number if number < PRIME else 0


def prg_key(secret: int) -> bytes:
    """Return the key of a generator (`masks.expand`) that a shared secret stands for, 16 bytes."""
    return secret.to_bytes(16, "little")


@dataclass(frozen=True)
class KeyPair:
    """An X25519 key pair, made from a secret that can be shared.

    Args:
        secret: a number below `PRIME`.
        purpose: "mask" or "channel"; the same secret gives other keys for another purpose.
    """

    secret: int
    purpose: str

    @cached_property
    def private(self) -> X25519PrivateKey:
        """The private key."""
        return X25519PrivateKey.from_private_bytes(derived(prg_key(self.secret), self.purpose, size=KEY_BYTES))

    @cached_property
    def public(self) -> bytes:
        """The public key, 32 bytes."""
        return self.private.public_key().public_bytes_raw()

    def agree(self, public: bytes) -> bytes:
        """Return the key that this pair and another one agree on, 16 bytes: a hash of the X25519 secret."""
        common = self.private.exchange(X25519PublicKey.from_public_bytes(public))
        return hashlib.blake2b(common, digest_size=16, person=self.purpose.encode()).digest()


def sealed(key: bytes, first: bool, content: bytes) -> bytes:
    """Encrypt and authenticate a message with AES-GCM.

    Args:
        key: the key that the two clients agreed on. It serves for one message in each direction.
        first: whether the sender is the first of the two; the nonce follows from it.
        content: the message.
    """
    return AESGCM(key).encrypt(_nonce(first), content, None)


def opened(key: bytes, first: bool, message: bytes) -> bytes:
    """Invert `sealed`. An altered message is an error."""
    return AESGCM(key).decrypt(_nonce(first), message, None)


def _nonce(first: bool) -> bytes:
    return int(first).to_bytes(12, "little")
