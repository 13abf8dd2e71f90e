"""The pieces of a static group on the way down, its patches and the whole value, and which of them a client is due."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from fl.communication.codec import Codec, Identity
from fl.communication.keys import Key, down_key, patch_key
from fl.method.messages import Static
from fl.tensors.trees import Tree

Piece = int | None  # the version that a patch is applied to; None is the whole value
E = TypeVar("E")


@dataclass(frozen=True)
class Pieces(Generic[E]):
    """The pieces of a static group, each encoded once, when it is needed.

    Args:
        group: name of the group.
        static: the group. If it has patches, its value is what clients hold after them.
        codec: codec of the pieces.
        seed: seed of the run.
        encode: encodes a piece: (codec, group, tree, key) -> the encoded piece.
        nbytes: encoded piece -> its bytes.
        encoded: (piece, whether it went through the codec) -> the piece, if it is encoded already.
    """

    group: str
    static: Static
    codec: Codec
    seed: int
    encode: Callable[[Codec, str, Tree, Key], E]
    nbytes: Callable[[E], int]
    encoded: dict[tuple[Piece, bool], E] = field(default_factory=dict)

    def codec_of(self, piece: Piece) -> Codec:
        """Return the codec of a piece. A value that patches also lead to travels unchanged."""
        return self.codec if piece is not None or not self.static.patches or self.codec.exact else Identity()

    def __getitem__(self, piece: Piece) -> E:
        codec, static, seed = self.codec_of(piece), self.static, self.seed
        place = piece, codec is self.codec
        if place not in self.encoded:
            if piece is None:
                tree, key = static.value, down_key(seed, 0, self.group, version=static.version)
            else:
                tree, key = static.patches[piece], patch_key(seed, self.group, piece)
            self.encoded[place] = self.encode(codec, self.group, tree, key)
        return self.encoded[place]

    def due(self, version: int) -> tuple[Piece, ...]:
        """Return the pieces that a client with `version` receives; () if its version is the present one."""
        if version == self.static.version:
            return ()
        path = self.static.path(version)
        if path and sum(self.nbytes(self[patch]) for patch in path) < self.nbytes(self[None]):
            return path
        return (None,)
