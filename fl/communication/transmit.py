"""Send a group of a message (a tree of tensors) through a codec: what arrives, and how many bytes it takes.

    decoded, sizes = transmit(codec, tree)       sender and receiver in one process
    nbytes = expected_bytes(codec, tree)         before the numbers are known

How the leaves travel:

    Params                  the tensors of each floating dtype form one vector, which goes through the codec
    floating tensors        go through the codec, each as one vector
    Table, Sparse           floating values go through the codec if it is elementwise, else unchanged. Other codecs may
                            drop entries, and that would mix up values and positions
    integers, keys, counts  unchanged
    sparse positions        packed to bits
    plain values            not counted
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from torch import Tensor

from fl.communication.codec import Codec, Shapes, decode, encode
from fl.communication.codecs.identity import Identity
from fl.communication.keys import Key
from fl.communication.positions import pack_positions
from fl.tensors.params import Layout, Params
from fl.tensors.random import hash64
from fl.tensors.sparse import Sparse, Table
from fl.tensors.trees import Tree, is_container, tree_map

L = TypeVar("L", Params, Tensor)


@dataclass(frozen=True)
class Sizes:
    """Size of one group, per client.

    payload_bytes: bytes of the raw tensors; of sparse tensors only the values.
    encoded_bytes: bytes after the codec, an array (C,) if clients differ.
    arrays: number of arrays in a message.
    """

    payload_bytes: int
    encoded_bytes: int | np.ndarray
    arrays: int


def transmit(codec: Codec, tree: Tree, count: int | None = None, key: Key = 0) -> tuple[Tree, Sizes]:
    """Encode and decode a group. Returns the decoded tree and its size.

    Args:
        codec: The codec. With `Identity` nothing is copied: the returned tree is `tree` itself.
        tree: The group, see the module.
        count: Number of clients if every leaf has a leading client axis; None for a single client.
        key: Key of the random numbers; an array uint64 (count,) has one key per client.
    """
    if isinstance(codec, Identity) and isinstance(tree, Params):  # tiny models train in a few microseconds per client
        nbytes, arrays, _ = _layout_per_dtype(tree.layout)
        return tree, Sizes(nbytes, nbytes, arrays)
    transfer = GroupTransfer(codec, count, key)
    decoded = transfer.send(tree)
    return tree if transfer.identity else decoded, transfer.sizes


def expected_bytes(codec: Codec, tree: Tree) -> int | None:
    """Return the encoded bytes of a group with the shapes of `tree`; None if they depend on the numbers."""
    transfer = _SizeEstimate(codec, None)
    transfer.send(tree)
    return None if transfer.unknown else int(transfer.encoded_bytes)


class GroupTransfer:
    """Walks over a group, sends its leaves and adds up their sizes.

    Leaves travel in three ways: `unchanged`, `vector` (through the codec) and `positions`. Here sender and receiver are
    the same process. Subclasses override the three methods to send to another machine.
    """

    def __init__(self, codec: Codec, count: int | None, key: Key = 0) -> None:
        self.codec, self.identity = codec, isinstance(codec, Identity)
        self.batch = () if count is None else (count,)
        self.payload_bytes = self.arrays = 0
        self.encoded_bytes: int | np.ndarray = 0
        self.key, self.num_vectors = key, 0

    @property
    def sizes(self) -> Sizes:
        """Size of everything that was sent."""
        return Sizes(self.payload_bytes, self.encoded_bytes, self.arrays)

    def send(self, tree: Tree) -> Tree:
        """Send a tree; returns what arrives. A ValueError names a leaf that no message can hold."""
        return tree_map(self._leaf, tree, is_leaf=_is_leaf)

    # -- the three ways -----------------------------------------------------------------------------------------------
    def unchanged(self, leaf: L) -> L:
        """Send a leaf without the codec; its bytes are counted already."""
        return leaf

    def positions(self, positions: Tensor, size: int) -> Tensor:
        """Send positions (*batch, k) below `size`, packed."""
        self.encoded_bytes += pack_positions(positions, size).shape[-1]
        return positions  # unpacking is exact

    def vector(self, codec: Codec, flat: Tensor, key: Key) -> Tensor:
        """Send a vector (*batch, n) through the codec."""
        encoded = encode(codec, flat, key)
        self.encoded_bytes = self.encoded_bytes + encoded.nbytes
        return decode(codec, encoded, flat.shape[-1], key)

    # -- leaves -------------------------------------------------------------------------------------------------------
    def _leaf(self, leaf: Tree) -> Tree:
        if isinstance(leaf, Params):
            return self._params(leaf)
        if isinstance(leaf, Tensor):
            return self._dense(leaf) if leaf.is_floating_point() else self._raw(leaf)
        if isinstance(leaf, Table):
            return Table(self._raw(leaf.keys), self._values(leaf.values), self._raw(leaf.counts))
        if isinstance(leaf, Sparse):
            self.arrays += 1
            positions = self.positions(leaf.positions, leaf.size)
            return Sparse(positions, self._values(leaf.values), leaf.size)
        if leaf is None or isinstance(leaf, (bool, int, float, str)):
            return leaf
        raise ValueError(
            f"a message holds Params, tensors, Table, Sparse and plain values, not {type(leaf)}; use torch.as_tensor"
        )

    def _params(self, params: Params) -> Params:
        nbytes, arrays, layouts = _layout_per_dtype(params.layout)
        self.arrays += arrays
        self.payload_bytes += nbytes
        if self.identity:
            self.encoded_bytes += nbytes
            return self.unchanged(params)
        buffers = []
        for layout, buffer in zip(layouts, params.buffers):
            if buffer.is_floating_point():
                shapes = tuple(e.shape for e in layout.entries.values())
                flat = self._encoded(Params(layout, (buffer,)).compact(), shapes)
                buffer = Params.expand(layout, flat).buffers[0]
            else:
                self.encoded_bytes += layout.nbytes
                buffer = self.unchanged(Params(layout, (buffer,))).buffers[0]
            buffers.append(buffer)
        return Params(params.layout, tuple(buffers))

    def _dense(self, tensor: Tensor) -> Tensor:
        if self.identity:
            return self._raw(tensor)
        self.arrays += 1
        self.payload_bytes += self._nbytes(tensor)
        shape = tuple(tensor.shape[len(self.batch) :])
        return self._encoded(tensor.reshape(*self.batch, self._numel(tensor)), (shape,)).reshape(tensor.shape)

    def _values(self, tensor: Tensor) -> Tensor:
        """Send the values of a table or of a sparse vector."""
        return self._dense(tensor) if self.codec.elementwise and tensor.is_floating_point() else self._raw(tensor)

    def _raw(self, tensor: Tensor) -> Tensor:
        nbytes = self._nbytes(tensor)
        self.arrays += 1
        self.payload_bytes += nbytes
        self.encoded_bytes += nbytes
        return self.unchanged(tensor)

    def _encoded(self, flat: Tensor, shapes: Shapes) -> Tensor:
        codec = self.codec.for_shapes(shapes)
        key = hash64(self.key, self.num_vectors) if codec.draws else 0
        self.num_vectors += 1
        return self.vector(codec, flat, key).to(flat.dtype)

    def _numel(self, tensor: Tensor) -> int:
        return tensor.numel() // self.batch[0] if self.batch else tensor.numel()

    def _nbytes(self, tensor: Tensor) -> int:
        return self._numel(tensor) * tensor.itemsize


class _SizeEstimate(GroupTransfer):
    """Adds up sizes without encoding; `unknown` if a size depends on the numbers."""

    unknown = False

    def positions(self, positions: Tensor, size: int) -> Tensor:
        self.unknown = True
        return positions

    def vector(self, codec: Codec, flat: Tensor, key: Key) -> Tensor:
        sizes = codec.sizes(flat.shape[-1], flat.itemsize)
        if sizes is None:
            self.unknown = True
        else:
            self.encoded_bytes += sizes[0] + sizes[1] * sizes[2]
        return flat


def _is_leaf(node: Tree) -> bool:
    """Whether a message sends a node as a whole: tables, sparse vectors, and everything that is not a container."""
    return isinstance(node, (Table, Sparse)) or not is_container(node)


@functools.cache  # a run has few layouts, and every message needs this
def _layout_per_dtype(layout: Layout) -> tuple[int, int, tuple[Layout, ...]]:
    """(bytes, number of tensors, one layout per buffer)."""
    parts: list[list] = [[] for _ in layout.dtypes]
    for e in layout.entries.values():
        parts[e.buffer].append((e.name, e.shape, layout.dtypes[e.buffer]))
    return layout.nbytes, len(layout.entries), tuple(Layout.of(part) for part in parts)
