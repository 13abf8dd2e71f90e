"""Static groups on the way down: values that clients keep, sent whole or as patches (see `Static`).

All clients of one version hold the same bits R of a group. The server knows R and computes the next one:

    patches lead on from R    R <- patched(R, decode(encode(patch))), ..    a client receives its patches, or R whole
    otherwise: a key version  R <- decode(encode(value))                    a client receives the value

With an exact codec R is the value. With another codec a second encoding would change R, so R travels whole without the
codec. The errors of patches add up. So a version becomes a key version if the patches since the last one have as many
encoded bytes as the value. Patches never lead across a key version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl.communication.codec import Codec
from fl.communication.keys import Key
from fl.communication.transmit import Sizes
from fl.method.messages import Static
from fl.simulation.expected_bytes import encoded_size
from fl.simulation.setup import RunSetup
from fl.simulation.static_pieces import Pieces
from fl.tensors.serialise import flatten
from fl.tensors.trees import Tree

Send = Callable[[Codec, str, Tree, Key], tuple[Tree, Sizes]]  # (codec, group, tree, key) -> (what arrives, size)


@dataclass(frozen=True)
class Held:
    """What clients of the last version hold.

    Args:
        version: the last version; -1 before the first one.
        value: R.
        key: the last key version; patches lead on from it.
        spent: encoded bytes of the patches since then.
    """

    version: int = -1
    value: Tree = None
    key: int = -1
    spent: int = 0


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
        send: sends a tree through a codec and checks what arrives.
    """

    def __init__(self, run_setup: RunSetup, send: Send):
        self.config, self.population, self.encode = run_setup.config, run_setup.population, send
        self.versions_seen: dict[str, np.ndarray] = {}  # group -> version each client last saw, -1 for none
        self.held: dict[str, Held] = {}  # by group

    def record(self) -> dict[str, Any]:
        """Return what a resumed run needs. With an exact codec that leaves R out, because the next broadcast has it."""
        held = {group: replace(held, value=None) for group, held in self.held.items()}
        return {"versions_seen": self.versions_seen, "held": held if self.config.down.exact else self.held}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Take over a `record`."""
        self.versions_seen, self.held = record["versions_seen"], record["held"]

    def send(self, group: str, static: Static, cohort: np.ndarray) -> Delivery:
        """Encode what the clients of `cohort`, (n,), lack of a group. Afterwards they hold its present version."""
        down, seed = self.config.down, self.config.seed
        pieces = Pieces(group, static, down, seed, self.encode, lambda sent: encoded_size(sent[1]))
        held = self.held[group] = self._next(pieces)
        patches = {version: patch for version, patch in static.patches.items() if version >= held.key}
        static = replace(static, value=held.value if patches else static.value, patches=patches)
        pieces = replace(pieces, static=static)
        versions = self._versions(group, static.version, cohort)
        due = {int(version): pieces.due(int(version)) for version in np.unique(versions)}
        return Delivery(
            decoded=Static(static.version, held.value),
            encoded=static,
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

    def _next(self, pieces: Pieces[tuple[Tree, Sizes]]) -> Held:
        """Return what clients hold of the group's present version."""
        group, static, exact = pieces.group, pieces.static, self.config.down.exact
        last = self.held.get(group, Held())
        if group in self.held and last.version == static.version:
            return replace(last, value=static.value) if exact else last
        path = static.path(last.version)
        spent = last.spent + sum(pieces.nbytes(pieces[version]) for version in path)
        whole = replace(pieces, static=replace(static, patches={}))
        if not path or not exact and spent >= pieces.nbytes(whole[None]):
            return Held(static.version, whole[None][0], key=static.version)
        value = self._patched(pieces, last, path)
        if exact and value is not None and not _same_bits(value, static.value):
            raise ValueError(
                f"{type(self.config.strategy).__name__}: the patches of the static group {group!r} do not lead from "
                f"version {last.version} to the value of version {static.version}, bit for bit. Compute the value as "
                f"{type(self.config.client).__name__}.patched({group!r}, last value, patch)"
            )
        return Held(static.version, static.value if exact else value, last.key, spent)

    def _patched(self, pieces: Pieces[tuple[Tree, Sizes]], last: Held, path: tuple[int, ...]) -> Tree:
        """Return R after the patches of `path`; None if R is not known, in a resumed run with an exact codec."""
        if last.value is None and last.version >= 0:
            return None
        value = last.value if last.version >= 0 else None
        for version in path:
            value = self.config.client.patched(pieces.group, value, pieces[version][0])
        return value


def _same_bits(a: Tree, b: Tree) -> bool:
    """Whether two trees have the same structure and the same bits."""
    (form, ours), (other, theirs) = flatten(a), flatten(b)
    return form == other and all(torch.equal(_bits(x), _bits(y)) for x, y in zip(ours, theirs))


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
