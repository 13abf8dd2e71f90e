"""Static groups on the way down: values that clients keep, sent whole or as patches (see `Static`).

All clients of one version hold the same bits R of a group. The server knows R and computes the next one:

    a key version                   R <- decode(encode(value))
    otherwise, from R of the last   R <- patched(R, decode(encode(patch)))

With an exact codec R is the value, and every version is a key version. With another codec the errors of patches add
up. So a version becomes a key version if the patches since the last one have as many encoded bytes as the value, or if
the strategy no longer has them. Patches never lead across a key version. The codec's draws depend on the version only,
so a client that comes later receives the same bits of the last key version, and the patches since then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl.communication.keys import Key
from fl.communication.transmit import Sizes
from fl.method.messages import Static
from fl.simulation.expected_bytes import encoded_size
from fl.simulation.setup import RunSetup
from fl.simulation.static_pieces import Keyed, Pieces
from fl.tensors.serialise import flatten
from fl.tensors.trees import Tree

Send = Callable[[str, Tree, Key], tuple[Tree, Sizes]]  # (group, tree, key) -> (what arrives, size)
SentPieces = Pieces[tuple[Tree, Sizes]]
NOTHING = Static(-1, None)  # what a client has before it receives anything


@dataclass(frozen=True)
class Delivery:
    """A static group as a cohort receives it.

    Args:
        decoded: the value that every client then holds.
        encoded: the group for executors that encode it themselves.
        due: (which clients of the cohort, (n,) bool; sizes of the pieces that each of them receives).
        sizes: sizes of the different pieces that were sent.
    """

    decoded: Static
    encoded: Static
    due: list[tuple[np.ndarray, list[Sizes]]]
    sizes: list[Sizes]


class StaticGroups:
    """What clients hold of the static groups, and what they are sent.

    Args:
        run_setup: the run: codec, seed, client algorithm, number of clients.
        send: sends a tree through the codec and checks what arrives.
    """

    def __init__(self, run_setup: RunSetup, send: Send):
        self.config, self.population, self.encode = run_setup.config, run_setup.population, send
        self.versions_seen: dict[str, np.ndarray] = {}  # group -> version each client last saw, -1 for none
        self.keys: dict[str, Static] = {}  # group -> last key version, before the codec; empty with an exact codec
        self.held: dict[str, Static] = {}  # group -> last version; its value is R

    def record(self) -> dict[str, Any]:
        """Return what a resumed run needs. It computes R from the key version and the patches."""
        return {"versions_seen": self.versions_seen, "keys": self.keys}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Take over a `record`."""
        self.versions_seen, self.keys = record["versions_seen"], record["keys"]

    def send(self, group: str, static: Static, cohort: np.ndarray) -> Delivery:
        """Encode what the clients of `cohort`, (n,), lack of a group. Afterwards they hold its present version."""
        pieces = Pieces(group, static, self.config.seed, self.encode, lambda sent: encoded_size(sent[1]))
        if self.config.down.exact:
            self.held[group] = self._exact(pieces)
        elif group not in self.held or self.held[group].version != static.version:
            self.held[group] = self._inexact(pieces)
        held = self.held[group]
        pieces = replace(pieces, static=held)
        versions = self._versions(group, static.version, cohort)
        due = {int(version): pieces.due(int(version)) for version in np.unique(versions)}
        return Delivery(
            decoded=Static(held.version, held.value),
            encoded=held,
            due=[(versions == v, [pieces[piece][1] for piece in parts]) for v, parts in due.items() if parts],
            sizes=[pieces[piece][1] for piece in dict.fromkeys(piece for parts in due.values() for piece in parts)],
        )

    def _versions(self, group: str, version: int, cohort: np.ndarray) -> np.ndarray:
        """Return the version of each client, (n,), and note that they now hold `version`.

        A client that occurs twice holds `version` the second time.
        """
        seen = self.versions_seen.setdefault(group, np.full(self.population, -1))
        versions = np.full(len(cohort), version)
        _, first = np.unique(cohort, return_index=True)
        versions[first] = seen[cohort[first]]
        seen[cohort] = version
        return versions

    def _exact(self, pieces: SentPieces) -> Static:
        """Return what clients hold of the present version with an exact codec."""
        group, static, last = pieces.group, pieces.static, self.held.get(pieces.group, NOTHING)
        path = static.path(last.version)
        if path and not _same_bits(self._patched(pieces, last.value, path), static.value):
            raise ValueError(
                f"{type(self.config.strategy).__name__}: the patches of the static group {group!r} do not lead from "
                f"version {last.version} to the value of version {static.version}, bit for bit. Compute the value as "
                f"{type(self.config.client).__name__}.patched({group!r}, last value, patch)"
            )
        return static

    def _inexact(self, pieces: SentPieces) -> Keyed:
        """Return what clients hold of the present version with a codec that is not exact."""
        group, static, last = pieces.group, pieces.static, self.held.get(pieces.group, NOTHING)
        key = self.keys.get(group, NOTHING)
        since = static.path(key.version)
        if not since or pieces.size(since) >= pieces.size([None]):
            key, since = Static(static.version, static.value), ()
        self.keys[group] = key
        held = Keyed(static.version, None, {version: static.patches[version] for version in since}, key=key)
        path, value = held.path(last.version), last.value
        if not path:  # a key version, or the first version after a resume
            path, value = since, replace(pieces, static=held)[None][0]
        return replace(held, value=self._patched(pieces, value, path))

    def _patched(self, pieces: SentPieces, value: Tree, path: Iterable[int]) -> Tree:
        """Return R after the patches of `path`."""
        for version in path:
            value = self.config.client.patched(pieces.group, value, pieces[version][0])
        return value


def _same_bits(a: Tree, b: Tree) -> bool:
    """Whether two trees have the same structure and the same bits."""
    (form, ours), (other, theirs) = flatten(a), flatten(b)
    return form == other and all(torch.equal(_bits(x), _bits(y)) for x, y in zip(ours, theirs))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
