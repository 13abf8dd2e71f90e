"""Sizes of messages in bytes, known before any client has trained."""

from __future__ import annotations

import numpy as np

from fl.communication.codec import Codec
from fl.communication.keys import Key
from fl.communication.transmit import Sizes, expected_bytes, transmit
from fl.config.config import Config
from fl.errors import ConfigError
from fl.method.messages import Broadcast
from fl.method.requests import Exchange
from fl.privacy.secure.secure_sum import SecureSum
from fl.simulation.static_pieces import Pieces
from fl.tensors.trees import Tree


def encoded_size(sizes: Sizes) -> int:
    """Return the encoded bytes of one message as an int (some codecs return a one-element array)."""
    return int(np.max(sizes.encoded_bytes))


def expected_upload_bytes(config: Config, exchange: Exchange, secure: SecureSum | None = None) -> int:
    """Return the encoded bytes that each client will upload in `exchange`; `secure` packs them with secure aggregation.

    A group of the update that has the form of a received group has a known size. For other groups the user declares
    `system.up_bytes`.

    Raises:
        ConfigError: a size depends on numbers that only training gives, and `system.up_bytes` is missing.
    """
    assert config.system is not None
    if config.system.up_bytes is not None:
        return config.system.up_bytes
    broadcast, total = Broadcast.of(exchange.broadcast), 0
    known = {**broadcast.shared, **{name: static.value for name, static in broadcast.static.items()}}
    for name in exchange.reductions:
        received = known.get(config.client.delta_reference.get(name, name))
        if secure is not None and received is not None:
            total += secure.group_bytes(received)
            continue
        size = None if received is None else expected_bytes(config.up, received)
        if size is None:
            raise ConfigError(
                "system.up_bytes",
                f"missing: the size of {name!r} is not known before clients have trained, and `server` needs it to "
                "know which updates arrive in time; declare it in bytes",
            )
        total += size
    return total + (0 if secure is None else secure.counter_bytes)


def expected_download_bytes(codec: Codec, broadcast: Broadcast) -> int:
    """Return the encoded bytes of a broadcast for a client that has received nothing yet, without its own groups."""

    def nbytes(group: str, tree: Tree, key: Key = 0) -> int:
        return encoded_size(transmit(codec, tree, key=key)[1])

    total = sum(nbytes(name, tree) for name, tree in broadcast.shared.items() if name not in broadcast.hidden)
    for name, static in broadcast.static.items():
        pieces = Pieces(name, static, 0, nbytes, int)
        total += pieces.size(pieces.due(-1))
    return total
