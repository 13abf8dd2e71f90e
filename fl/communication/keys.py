"""Keys: the addresses of the random numbers that codecs draw.

A key is a hash of seed, client, dispatch and group. Sender and receiver both know it. So random positions, signs and
rotations need no bytes, and they do not depend on the order in which clients are encoded.
"""

from __future__ import annotations

import numpy as np

from fl.tensors.random import hash64

Key = int | np.ndarray  # 64 bits; an array uint64 (C,) has one key per client


def up_key(seed: int, clients: int | np.ndarray, number: int, group: str) -> Key:
    """Return the key of an update: what a client sends in dispatch `number`."""
    return hash64(seed, clients, number, "codec", group)


def down_key(seed: int, number: int, group: str, client: int | None = None, version: int | None = None) -> Key:
    """Return the key of a broadcast: what the server sends in dispatch `number`.

    Args:
        seed: Seed of the run.
        number: Number of the dispatch in the run.
        group: Name of the group.
        client: The receiver of a group of its own; None for a group that all clients share.
        version: Version of a static group. Its key does not depend on the dispatch.
    """
    if version is not None:
        return hash64(seed, version, "codec/static", group)
    if client is None:
        return hash64(seed, number, "codec/down", group)
    return hash64(seed, number, client, "codec/own", group)


def patch_key(seed: int, group: str, version: int) -> Key:
    """Return the key of the patch of a static group that leads on from `version`. It does not depend on the dispatch.

    Args:
        seed: Seed of the run.
        group: Name of the group.
        version: Version that the patch is applied to.
    """
    return hash64(seed, version, "codec/patch", group)


def keys_of(key: Key, count: int) -> np.ndarray:
    """Return one key per client, uint64 (count,): the array itself, or one key repeated.

    >>> keys_of(7, 3).tolist()
    [7, 7, 7]
    """
    return np.broadcast_to(np.asarray(key).astype(np.uint64) if isinstance(key, np.ndarray) else np.uint64(key), count)
