"""The `codec` section of a configuration: how messages are encoded in each direction."""

from __future__ import annotations

from dataclasses import dataclass

from fl.communication.chain import first_invalid
from fl.communication.codec import Codec
from fl.communication.codecs.identity import Identity
from fl.errors import ConfigError
from fl.registry import name_of


@dataclass(frozen=True, kw_only=True)
class Codecs:
    """How messages are encoded.

    Args:
        up: codec of updates, from clients to the server; or a list of codecs, each of which encodes the output of the
            previous one.
        down: codec of broadcasts, from the server to clients; or a list of codecs.
    """

    up: tuple[Codec, ...] = (Identity(),)
    down: tuple[Codec, ...] = (Identity(),)

    def __post_init__(self) -> None:
        for direction in ("up", "down"):
            codecs = getattr(self, direction)
            if not codecs:
                raise ValueError(f"{direction}: an empty list; 'identity' sends numbers unchanged")
            wrong = first_invalid(codecs)
            if wrong:
                raise ConfigError(f"codec.{direction}[{wrong[0]}]", wrong[1])
        wrappers = [name_of(codec) for codec in self.down if codec.wraps]
        if len(wrappers) > 1:
            raise ConfigError(
                "codec.down", f"{wrappers} together; use one of them: the next delta contains what this one loses"
            )
