"""Groups of a message as Flower records, and back to the same bits.

    tree  -- write_group(codec) -->  ArrayRecord + form      ArrayRecord + form  -- read_group(codec) -->  tree, Sizes

`Params` without a codec need no form: their arrays are the tensors by name, as in any Flower app. For every other group
the form is the text of its structure (`fl.tensors.serialise.flatten`), and arrays are named "leaf number/part". The
parts are those that the codec encoded. Nothing is pickled. `tree_to_record` and `record_to_tree` do the same without a
codec.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fl.communication.codec import Codec, Encoded, RaggedTensor, decode, encode
from fl.communication.keys import Key
from fl.communication.positions import pack_positions, unpack_positions
from fl.communication.transmit import GroupTransfer, L, Sizes
from fl.tensors.params import Params
from fl.tensors.serialise import flatten, shapes, unflatten
from fl.tensors.trees import Tree

_INTEGERS = {1: torch.uint8, 2: torch.int16}  # by width in bytes; numpy does not know bfloat16 and float8


# -- arrays -----------------------------------------------------------------------------------------------------------
def tensor_to_array(tensor: Tensor) -> Array:
    """Convert a tensor to a Flower array. Dtypes that numpy lacks keep their name, with their bits as integers."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16 or "float8" in str(tensor.dtype):
        bits = Array(tensor.view(_INTEGERS[tensor.itemsize]).numpy())
        return Array(str(tensor.dtype).removeprefix("torch."), bits.shape, bits.stype, bits.data)
    return Array(tensor.numpy())


def array_to_tensor(array: Array) -> Tensor:
    """Convert a Flower array to a tensor in its own memory, aligned as torch aligns."""
    values = torch.from_numpy(array.numpy()).clone()
    dtype = getattr(torch, array.dtype, values.dtype)
    return values if dtype == values.dtype else values.view(dtype)


# -- groups -----------------------------------------------------------------------------------------------------------
def write_group(codec: Codec, tree: Tree, key: Key = 0) -> tuple[ArrayRecord, str, Sizes]:
    """Encode one client's group. Returns (arrays, form, size)."""
    sender = _Sender(codec, None, key)
    plain = isinstance(tree, Params) and sender.identity
    sender.send(tree)
    arrays = {(name if plain else f"{leaf}/{name}"): tensor_to_array(part) for leaf, name, part in sender.parts}
    return ArrayRecord(arrays), "" if plain else flatten(tree)[0], sender.sizes


def read_group(codec: Codec, record: ArrayRecord, form: str, key: Key = 0) -> tuple[Tree, Sizes]:
    """Decode what `write_group` made. Returns (tree, size)."""
    leaves: dict[int, dict[str, Tensor]] = {}
    if form:
        for place, value in record.items():
            leaf, _, name = place.partition("/")
            leaves.setdefault(int(leaf), {})[name] = array_to_tensor(value)
        _check_classes(json.loads(form)["tree"])
        template = unflatten(form, [torch.zeros(size, dtype=dtype) for dtype, size in shapes(form)])
    else:
        leaves[0] = {name: array_to_tensor(value) for name, value in record.items()}
        template = Params.of(leaves[0])
    receiver = _Receiver(codec, leaves, key)
    return receiver.send(template), receiver.sizes


def _check_classes(node: Any) -> None:
    """Check that a form from another machine names only classes of modules that are imported already."""
    if isinstance(node, dict):
        kind = node.get("class")
        if isinstance(kind, str) and kind.partition(":")[0] not in sys.modules:
            raise ValueError(f"a message names {kind}, of a module that nothing here has imported")
        node = list(node.values())
    for part in node if isinstance(node, list) else ():
        _check_classes(part)


class _Sender(GroupTransfer):
    """Collects the encoded parts: (leaf number, name, part)."""

    def __init__(self, codec: Codec, count: int | None, key: Key) -> None:
        super().__init__(codec, count, key)
        self.parts: list[tuple[int, str, Tensor]] = []
        self.leaf = -1

    def unchanged(self, leaf: L) -> L:
        self._put(leaf if isinstance(leaf, Params) else {"tensor": leaf})
        return leaf

    def positions(self, positions: Tensor, size: int) -> Tensor:
        packed = pack_positions(positions, size)
        self.encoded_bytes += packed.shape[-1]
        self._put({"positions": packed})
        return positions

    def vector(self, codec: Codec, flat: Tensor, key: Key) -> Tensor:
        encoded = encode(codec, flat, key)
        self.encoded_bytes += encoded.nbytes
        self._put(encoded.parts)
        return flat

    def _put(self, parts: Params | Mapping[str, Tensor | RaggedTensor]) -> None:
        self.leaf += 1
        for name, part in parts.items():
            assert isinstance(part, Tensor), "a single client has no ragged parts"
            self.parts.append((self.leaf, name, part))


class _Receiver(GroupTransfer):
    """Walks over a template of the right shapes and replaces its leaves by the received ones."""

    def __init__(self, codec: Codec, leaves: dict[int, dict[str, Tensor]], key: Key) -> None:
        super().__init__(codec, None, key)
        self.leaves, self.leaf = leaves, -1

    def unchanged(self, leaf: L) -> L:
        parts = self._next()
        if isinstance(leaf, Params):
            return Params(leaf.layout, leaf.clone().copy_({name: parts[name] for name in leaf}).buffers)
        return parts["tensor"]

    def positions(self, positions: Tensor, size: int) -> Tensor:
        packed = self._next()["positions"]
        self.encoded_bytes += packed.shape[-1]
        return unpack_positions(packed, size, positions.shape[-1])

    def vector(self, codec: Codec, flat: Tensor, key: Key) -> Tensor:
        encoded = Encoded(self._next())
        self.encoded_bytes += encoded.nbytes
        return decode(codec, encoded, flat.shape[-1], key)

    def _next(self) -> dict[str, Tensor]:
        self.leaf += 1
        return self.leaves.get(self.leaf, {})


# -- states, metric sums, settings ------------------------------------------------------------------------------------
def tree_to_record(tree: Tree) -> tuple[str, ArrayRecord]:
    """Convert a tree to its form and its arrays."""
    form, tensors = flatten(tree)
    return form, ArrayRecord({str(i): tensor_to_array(t) for i, t in enumerate(tensors)})


def record_to_tree(form: str, record: ArrayRecord) -> Tree:
    """Undo `tree_to_record`."""
    _check_classes(json.loads(form)["tree"])
    return unflatten(form, [array_to_tensor(record[str(i)]) for i in range(len(record))])
