"""The `codec` section of a configuration: how messages are encoded in each direction."""

from __future__ import annotations

from dataclasses import dataclass

from fl.communication.chain import first_invalid
from fl.communication.codec import Codec, Identity
from fl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Codecs:
    """up, down: a codec or a list of codecs, each encoding what the one before left."""

    up: tuple[Codec, ...] = (Identity(),)
    down: tuple[Codec, ...] = (Identity(),)

    def __post_init__(self):
        for direction in ("up", "down"):
            codecs = getattr(self, direction)
            if not codecs:
                raise ValueError(f"{direction}: an empty list; 'identity' sends the numbers as they are")
            wrong = first_invalid(codecs)
            if wrong:
                raise ConfigError(f"codec.{direction}[{wrong[0]}]", wrong[1])
        wrappers = [codec.registered_as for codec in self.down if codec.wraps]
        if len(wrappers) > 1:
            raise ConfigError(
                "codec.down", f"{wrappers} together; one is enough: what delta loses is in the next difference"
            )
