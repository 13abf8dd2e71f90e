"""The pieces of a static group on the way down, and which of them a client is due.

    key version  -- patch -->  ..  -- patch -->  present version

A client is due the patches that lead on from its version, or the value of the key version and the patches after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from fl.communication.keys import Key, down_key, patch_key
from fl.method.messages import Static
from fl.tensors.trees import Tree

Piece = int | None  # the version that a patch is applied to; None is the value of the key version
E = TypeVar("E")


@dataclass(frozen=True)
class Keyed(Static):
    """A static group with its key version. Its patches lead from there to its version, if that is another one."""

    key: Static = field(kw_only=True)


@dataclass(frozen=True)
class Pieces(Generic[E]):
    """The pieces of a static group, each encoded once, when it is needed.

    Args:
        group: name of the group.
        static: the group; it is its own key version if it is not `Keyed`.
        seed: seed of the run.
        encode: encodes a piece: (group, tree, key) -> the encoded piece.
        nbytes: encoded piece -> its bytes.
        encoded: address of the codec's draws -> the piece, if it is encoded already.
    """

    group: str
    static: Static
    seed: int
    encode: Callable[[str, Tree, Key], E]
    nbytes: Callable[[E], int]
    encoded: dict[Key, E] = field(default_factory=dict)

    @property
    def key(self) -> Static:
        """The key version."""
        return self.static.key if isinstance(self.static, Keyed) else self.static

    def __getitem__(self, piece: Piece) -> E:
        if piece is None:
            tree, address = self.key.value, down_key(self.seed, 0, self.group, version=self.key.version)
        else:
            tree, address = self.static.patches[piece], patch_key(self.seed, self.group, piece)
        if address not in self.encoded:
            self.encoded[address] = self.encode(self.group, tree, address)
        return self.encoded[address]

    def size(self, pieces: Iterable[Piece]) -> int:
        """Return the encoded bytes of some pieces."""
        return sum(self.nbytes(self[piece]) for piece in pieces)

    def due(self, version: int) -> tuple[Piece, ...]:
        """Return the pieces that a client with `version` receives; () if its version is the present one."""
        if version == self.static.version:
            return ()
        path, whole = self.static.path(version), (None, *self.static.path(self.key.version))
        if path and (set(path) <= set(whole) or self.size(path) <= self.size(whole)):
            return path
        return whole
