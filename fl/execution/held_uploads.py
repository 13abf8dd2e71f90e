"""First stage of an exchange with attackers: updates are held in scratch files in place of being reduced.

honest client:  update -> transforms -> codec ~~> decoded -> server's side -> scratch
attacker:       update -> scratch
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from fl.execution.finite import is_finite
from fl.execution.isolation import as_error
from fl.execution.stages import during
from fl.execution.uploads import Keep, Uploads
from fl.execution.workers.process import trim
from fl.method.messages import Update
from fl.method.reduction import Meta, Reduction
from fl.storage.vector import Vector
from fl.tensors.params import Params
from fl.tensors.serialise import flatten, shapes, unflatten
from fl.tensors.trees import Tree, leaves, row, tree_map

TRIM_BYTES = 1 << 27


@dataclass(frozen=True)
class Held:
    """A group of one client's update in scratch files.

    Attributes:
        client: the client's id.
        num_examples: its number of training samples.
        skeleton: the group's structure (`fl.tensors.serialise.flatten`).
        vectors: its tensors; None for a tensor without elements.
    """

    client: int
    num_examples: int
    skeleton: str
    vectors: tuple[Vector | None, ...]

    def present(self, replaced: Mapping[int, Vector] | None = None) -> dict[int, Vector]:
        """Return the vectors of tensors that have elements, by index; `replaced` take the place of some."""
        own = {index: vector for index, vector in enumerate(self.vectors) if vector is not None}
        return own | dict(replaced or {})

    def read(self, read: Callable[[Vector], Tensor], replaced: Mapping[int, Vector] | None = None) -> Tree:
        """Return the group, in memory of its own.

        Args:
            read: reads one vector.
            replaced: vectors that take the place of some tensors, by index.
        """
        vectors = self.present(replaced)
        tensors = [
            read(vectors[index]).view(shape) if index in vectors else torch.empty(shape, dtype=dtype)
            for index, (dtype, shape) in enumerate(shapes(self.skeleton))
        ]
        tree = unflatten(self.skeleton, tensors)
        return tree_map(_without_padding, tree) if replaced else tree


def _without_padding(leaf: Params | Tensor) -> Params | Tensor:
    """Set the padding of parameters to zero."""
    if isinstance(leaf, Params):
        for buffer, gaps in zip(leaf.buffers, leaf.layout.gaps):
            for start, end in gaps:
                buffer[start:end] = 0
    return leaf


@dataclass(frozen=True)
class Hold(Reduction):
    """Holds the updates of a group in scratch files: a list of `Held` in the order of the tree."""

    linear: ClassVar[bool] = False

    def lift(self, value: Tree, meta: Meta) -> list[Held]:
        assert meta.spill is not None, "the engine gives each update a spill"
        skeleton, tensors = flatten(value)
        vectors = [meta.spill(tensor.reshape(-1)) if tensor.numel() else None for tensor in tensors]
        kept = tuple(vector for vector in vectors if vector is None or isinstance(vector, Vector))
        assert len(kept) == len(vectors), "scratch files hold vectors"
        return [Held(int(meta.client), _number(meta.num_examples), skeleton, kept)]

    def merge(self, a: list[Held], b: list[Held]) -> list[Held]:
        return a + b


@runtime_checkable
class DropsClients(Protocol):
    """Work that can leave clients out."""

    def failed(self, positions: np.ndarray, error: Exception) -> None:
        """Raise the error with its place, or drop the clients."""


class HeldUploads(Uploads):
    """The uploads of the first stage. Chunks with an attacker go client by client."""

    since_trim = 0  # bytes of updates since unused memory was returned to the system

    def upload(
        self,
        positions: np.ndarray,
        update: Update,
        received: Mapping[str, Tree],
        records: Sequence[Tree],
        stacked: bool,
        careful: bool,
        keep: Keep,
    ) -> bool:
        exchange = self.exchange
        assert self.dispatch.attackers is not None and isinstance(exchange, DropsClients)
        attacks = self.dispatch.attackers[positions]
        self.since_trim += sum(leaf.nbytes for leaf in leaves(update.groups)) if stacked else 0
        if self.since_trim > TRIM_BYTES:  # in the heap, what is kept of each client lies between the large blocks
            self.since_trim = 0
            trim()
        if not attacks.any():
            return super().upload(positions, update, received, records, stacked, careful, keep)
        update, received = self.device.fetch(update), self.device.fetch(received)
        with during("state"):
            keep({})  # codecs with a memory are refused
        for i, attack in enumerate(attacks):
            at = positions[i : i + 1]
            one = _client(update, i) if stacked else update
            try:
                if attack:
                    self._hold(at, one)
                else:
                    super().upload(at, one, received, records[i : i + 1], False, True, lambda residuals: None)
            except BaseException as error:  # clients before this one are in the fold already
                exchange.failed(at, as_error(error))
        return True

    def _hold(self, at: np.ndarray, update: Update) -> None:
        """Hold what an attacker trained. Its bytes are counted when it sends the attack."""
        bad = np.array([not is_finite(update.groups)])
        self.before_codec = update.groups
        meta = Meta(int(self.dispatch.cohort[at[0]]), update.num_examples, spill=self._spill)
        with during("reduce"):
            self._add_each(at, update.groups, meta, bad, False)
            self._account(at, update, {}, bad)


def _client(update: Update, index: int) -> Update:
    """Return the update of one of several stacked clients."""
    metrics = {name: _number(value, index) for name, value in update.metrics.items()}
    return Update(row(update.groups, index), _number(update.num_examples, index), metrics)


def _number(value: Any, index: int = 0) -> Any:
    """Return a number, or a client's number of an array (C,)."""
    array = np.asarray(value)
    return array.reshape(-1)[index if array.size > 1 else 0].item()
