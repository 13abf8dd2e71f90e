"""Groups of a message as Flower records, and back to the same bits.

    tree  -- write(codec) -->  ArrayRecord + form        ArrayRecord + form  -- read(codec) -->  tree, Sizes

`Params` that go as they are need no form: their arrays are the tensors by name, as any Flower app would have them. Of every
other group the form is the text of its structure (`fl.tensors.serialise.flatten`), and the arrays are numbered by leaf: "2/values". What the
codec encoded travels as its parts. Nothing is pickled. `store` and `restore` do the same for trees without a codec.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fl.communication.codec import Codec, Encoded, Key, Link, Sizes, decode, encode
from fl.communication.positions import pack_positions, unpack_positions
from fl.tensors.params import Params
from fl.tensors.serialise import flatten, shapes, unflatten
from fl.tensors.trees import Tree

_BITS = {1: torch.uint8, 2: torch.int16}  # by width: how numbers travel that numpy does not know


# -- arrays -----------------------------------------------------------------------------------------------------------
def array(tensor: Tensor) -> Array:
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16 or "float8" in str(tensor.dtype):
        bits = Array(tensor.view(_BITS[tensor.itemsize]).numpy())
        return Array(str(tensor.dtype).removeprefix("torch."), bits.shape, bits.stype, bits.data)
    return Array(tensor.numpy())


def tensor(array: Array) -> Tensor:
    """In memory of its own, aligned as torch aligns."""
    numbers = torch.from_numpy(array.numpy()).clone()
    dtype = getattr(torch, array.dtype, numbers.dtype)
    return numbers if dtype == numbers.dtype else numbers.view(dtype)


# -- groups -----------------------------------------------------------------------------------------------------------
def write(codec: Codec, tree: Tree, key: Key = 0) -> tuple[ArrayRecord, str, Sizes]:
    """(arrays, form, what they take) of one client's group."""
    link = _Sender(codec, None, key)
    plain = isinstance(tree, Params) and link.identity
    link.send(tree)
    arrays = {(name if plain else f"{leaf}/{name}"): array(part) for leaf, name, part in link.parts}
    return ArrayRecord(arrays), "" if plain else flatten(tree)[0], Sizes(link.payload, link.encoded, link.arrays)


def read(codec: Codec, record: ArrayRecord, form: str, key: Key = 0) -> tuple[Tree, Sizes]:
    """The inverse of `write`: what arrived, and what it took."""
    if form:
        leaves: dict[int, dict[str, Tensor]] = {}
        for place, value in record.items():
            leaf, _, name = place.partition("/")
            leaves.setdefault(int(leaf), {})[name] = tensor(value)
        _check_classes(json.loads(form)["tree"])
        shape = unflatten(form, [torch.zeros(size, dtype=dtype) for dtype, size in shapes(form)])
    else:
        leaves = {0: {name: tensor(value) for name, value in record.items()}}
        shape = Params.of(leaves[0])
    link = _Receiver(codec, leaves, key)
    return link.send(shape), Sizes(link.payload, link.encoded, link.arrays)


def _check_classes(node: Any) -> None:
    """What comes from outside may name our dataclasses, but import nothing."""
    if isinstance(node, dict):
        kind = node.get("class")
        if isinstance(kind, str) and kind.partition(":")[0] not in sys.modules:
            raise ValueError(f"a message names {kind}, of a module that nothing here has imported")
        node = list(node.values())
    for part in node if isinstance(node, list) else ():
        _check_classes(part)


class _Sender(Link):
    """Collects what goes out: (leaf, name, part)."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.parts: list[tuple[int, str, Tensor]] = []
        self.leaf = -1

    def as_is(self, leaf):
        self._put(leaf if isinstance(leaf, Params) else {"tensor": leaf})
        return leaf

    def places(self, positions, size):
        packed = pack_positions(positions, size)
        self.encoded += packed.shape[-1]
        self._put({"positions": packed})
        return positions

    def through(self, codec, flat, key):
        encoded = encode(codec, flat, key)
        self.encoded += encoded.nbytes
        self._put(encoded.parts)
        return flat

    def _put(self, parts) -> None:
        self.leaf += 1
        self.parts += [(self.leaf, name, part) for name, part in parts.items()]


class _Receiver(Link):
    """Walks a tree of the right shapes and puts in what came."""

    def __init__(self, codec: Codec, leaves: dict[int, dict[str, Tensor]], key: Key):
        super().__init__(codec, None, key)
        self.leaves, self.leaf = leaves, -1

    def as_is(self, leaf):
        parts = self._next()
        if isinstance(leaf, Params):
            return Params(leaf.layout, leaf.clone().copy_({name: parts[name] for name in leaf}).buffers)
        return parts["tensor"]

    def places(self, positions, size):
        packed = self._next()["positions"]
        self.encoded += packed.shape[-1]
        return unpack_positions(packed, size, positions.shape[-1])

    def through(self, codec, flat, key):
        encoded = Encoded(self._next())
        self.encoded += encoded.nbytes
        return decode(codec, encoded, flat.shape[-1], key)

    def _next(self) -> dict[str, Tensor]:
        self.leaf += 1
        return self.leaves.get(self.leaf, {})


# -- states, metrics' parts, settings ---------------------------------------------------------------------------------
def store(tree: Tree) -> tuple[str, ArrayRecord]:
    """A tree as text and arrays."""
    form, tensors = flatten(tree)
    return form, ArrayRecord({str(i): array(t) for i, t in enumerate(tensors)})


def restore(form: str, record: ArrayRecord) -> Tree:
    """The inverse of `store`."""
    _check_classes(json.loads(form)["tree"])
    return unflatten(form, [tensor(record[str(i)]) for i in range(len(record))])
