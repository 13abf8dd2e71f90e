"""Bytes of the messages of a protocol, beside the masked vectors. A client has k neighbours.

    group               up                                              down
    secure/keys         64: two public keys                             68 k: id and keys of each neighbour
    secure/shares       60 k: id, sealed shares of two secrets          60 k: likewise, from each neighbour
    secure/unmasking    16 k, 16 (k + 1) with an own share: one share   ceil(k / 8): for each neighbour whether it is in
                        of each neighbour (and of itself)               the sum

Ids have 4 bytes. A sealed message holds both ids, two shares of 16 bytes and a tag of 16 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.privacy.secure.keys import KEY_BYTES, TAG_BYTES
from fl.privacy.secure.shamir import SHARE_BYTES

ID_BYTES = 4
SEALED_BYTES = 2 * ID_BYTES + 2 * SHARE_BYTES + TAG_BYTES
KEYS, SHARES, UNMASKING, COUNTERS = "secure/keys", "secure/shares", "secure/unmasking", "secure/counters"


@dataclass(frozen=True)
class MessageBytes:
    """Bytes of the messages of each client, (n,) or one number for all."""

    keys_up: np.ndarray
    keys_down: np.ndarray
    shares_up: np.ndarray
    shares_down: np.ndarray
    unmasking_up: np.ndarray
    unmasking_down: np.ndarray


def message_bytes(neighbours: np.ndarray, own_share: bool) -> MessageBytes:
    """Return the bytes of each client's messages.

    >>> one = message_bytes(np.array([9]), own_share=True)
    >>> int(one.keys_up[0]), int(one.keys_down[0]), int(one.shares_up[0]), int(one.unmasking_up[0])
    (64, 612, 540, 160)

    Args:
        neighbours: number of neighbours of each client, (n,).
        own_share: whether a client keeps a share of its own secrets.
    """
    keys, shares = neighbours * (ID_BYTES + 2 * KEY_BYTES), neighbours * (ID_BYTES + SEALED_BYTES)
    return MessageBytes(
        np.full_like(neighbours, 2 * KEY_BYTES),
        keys,
        shares,
        shares,
        (neighbours + own_share) * SHARE_BYTES,
        -(-neighbours // 8),
    )
