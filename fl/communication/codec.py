"""Codecs: numbers to bytes and back. What the server sees is what was decoded, what the ledger counts is what was encoded.

    values (*batch, n)  -- encode -->  Encoded: named parts, real packed bytes  -- decode -->  values (*batch, n)

    top_k | fp16        v --> positions, values       a chain: each codec encodes the part "values" of the one before
                                         values --> values

Leading axes are clients: many encode at once, each to the bits it would have alone. `transmit` takes a whole group of a
message through a codec, as sender and receiver do together. What a codec draws it draws from a key, a hash of seed, client,
participation, group and leaf: both ends know it, so that random positions and rotations take no bytes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fl.communication.positions import pack_positions
from fl.registry import register
from fl.tensors.params import Layout, Params
from fl.tensors.random import hash64
from fl.tensors.serialise import raw_bytes
from fl.tensors.sparse import Sparse, Table
from fl.tensors.trees import Tree

Key = int | np.ndarray  # 64 bits, or uint64 (C,): one for each client
Shapes = tuple[tuple[int, ...], ...]


# -- what is sent -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class Ragged:
    """A part whose length is each client's own: `data` (total,), of which client c has `lengths[c]` elements."""

    data: Tensor
    lengths: np.ndarray  # int64 (C,)

    @staticmethod
    def of(rows: Sequence[Tensor]) -> Tensor | Ragged:
        """The rows of C clients as one part; a tensor where they are equally long."""
        lengths = np.array([len(row) for row in rows])
        return Ragged(torch.cat(list(rows)), lengths) if (lengths != lengths[0]).any() else torch.stack(list(rows))

    @property
    def itemsize(self) -> int:
        return self.data.itemsize

    def __getitem__(self, client: int) -> Tensor:
        end = int(self.lengths[: client + 1].sum())
        return self.data[end - int(self.lengths[client]) : end]


@dataclass(frozen=True)
class Encoded:
    """parts: name -> tensor (*batch, length), or `Ragged` where it is long as the numbers want it, in the order in which they
    are sent. The parts of one client are tensors (length,)."""

    parts: Mapping[str, Tensor | Ragged]

    @staticmethod
    def stacked(rows: Sequence[Encoded]) -> Encoded:
        """The encodings of one client each, as one of many."""
        return Encoded({name: Ragged.of([row.parts[name] for row in rows]) for name in rows[0].parts})

    def row(self, client: int) -> Encoded:
        """What one of many clients sends."""
        return Encoded({name: part[client] for name, part in self.parts.items()})

    @property
    def nbytes(self) -> int | np.ndarray:
        """Bytes per client: a number, or an array (C,) where it differs."""
        lengths = (part.lengths if isinstance(part, Ragged) else part.shape[-1] for part in self.parts.values())
        return sum(length * part.itemsize for length, part in zip(lengths, self.parts.values()))

    def __bytes__(self) -> bytes:
        """What one client sends: len(bytes(encoded)) == encoded.nbytes."""
        if any(isinstance(part, Ragged) or part.ndim != 1 for part in self.parts.values()):
            raise ValueError(
                f"bytes() takes the encoding of one client, got that of many, of {list(self.parts)}; encode one row"
            )
        return b"".join(raw_bytes(part) for part in self.parts.values() if part.numel())


# -- the seam ---------------------------------------------------------------------------------------------------------
class Codec:
    """Base of codecs: a frozen dataclass of hyper-parameters.

    elementwise: every number is encoded by itself, so that it also suits the values of tables and sparse vectors.
    draws: encode and decode take a `key`, an int or uint64 (C,), and what they draw is a function of it.
    unbiased: the mean over keys of what arrives is what was sent; what is exact is.
    takes, gives: what the part "values" is made of and becomes: floats, bytes that no codec of floats can follow, or the same.
    wraps: it changes what is encoded and not how, and stands in front of all others; encode and decode leave numbers as they are.
    """

    elementwise: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    unbiased: ClassVar[bool] = False
    takes: ClassVar[Literal["floats", "any"]] = "floats"
    gives: ClassVar[Literal["floats", "bytes", "same"]] = "floats"
    wraps: ClassVar[bool] = False

    def encode(self, values: Tensor) -> Encoded:
        """values: floating (*batch, n)."""
        raise NotImplementedError

    def decode(self, encoded: Encoded, n: int) -> Tensor:
        """(*batch, n), in float32 or, where the codec keeps it, the dtype that was encoded."""
        raise NotImplementedError

    def sizes(self, n: int, width: int = 4) -> tuple[int, int, int] | None:
        """How n numbers of `width` bytes come out: (bytes beside the part "values", its length, its width);
        `None` if that depends on the numbers."""
        return None

    def exact_size(self, n: int) -> int | None:
        """Bytes for n float32 numbers, known beforehand; `None` if they depend on the numbers."""
        sizes = self.sizes(n)
        return None if sizes is None else sizes[0] + sizes[1] * sizes[2]

    @property
    def fixed(self) -> bool:
        """Whether the part "values" is equally long for all clients, whatever their numbers."""
        return self.sizes(1) is not None

    def length(self, encoded: Encoded, n: int) -> int | None:
        """Of one client: how many numbers the part "values" holds, as a receiver can tell without it; `None` if it cannot."""
        sizes = self.sizes(n)
        return None if sizes is None else sizes[1]

    def bound(self, values: Tensor) -> float | None:
        """The largest Euclidean norm of the error of values (n,), whatever is drawn; `None` if there is none."""
        return None

    def fitted(self, shapes: Shapes) -> Codec:
        """The codec for vectors that are tensors of these shapes, one after another."""
        return self


class Rounding(Codec):
    """Base of codecs that make bytes of numbers by rounding to levels: to one of them (`mode`) or, stochastically, without bias."""

    gives: ClassVar[Literal["floats", "bytes", "same"]] = "bytes"
    mode: str

    @property
    def draws(self) -> bool:  # type: ignore[override]
        return self.mode == "stochastic"

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        return self.mode == "stochastic"


def encode(codec: Codec, values: Tensor, key: Key = 0) -> Encoded:
    """`codec.encode`, with the key if it draws."""
    return codec.encode(values, key) if codec.draws else codec.encode(values)  # type: ignore[call-arg]


def decode(codec: Codec, encoded: Encoded, n: int, key: Key = 0) -> Tensor:
    """`codec.decode`, with the key if it draws."""
    return codec.decode(encoded, n, key) if codec.draws else codec.decode(encoded, n)  # type: ignore[call-arg]


def keys_of(key: Key, count: int) -> np.ndarray:
    """(count,) uint64: a key for each client."""
    return np.broadcast_to(np.asarray(key).astype(np.uint64) if isinstance(key, np.ndarray) else np.uint64(key), count)


class OneByOne(Codec):
    """Base of codecs that encode one client at a time: `pack` and `unpack` in the place of `encode` and `decode`."""

    draws: ClassVar[bool] = True

    def pack(self, values: Tensor, key: int) -> Encoded:
        """values: (n,)"""
        raise NotImplementedError

    def unpack(self, encoded: Encoded, n: int, key: int) -> Tensor:
        raise NotImplementedError

    def encode(self, values, key=0):
        if values.ndim == 1:
            return self.pack(values, int(keys_of(key, 1)[0]))
        rows = values.reshape(values.shape[:-1].numel(), values.shape[-1])
        return Encoded.stacked([self.pack(row.clone(), int(k)) for row, k in zip(rows, keys_of(key, len(rows)))])

    def decode(self, encoded, n, key=0):
        count = _clients(encoded)
        if count is None:
            return self.unpack(encoded, n, int(keys_of(key, 1)[0]))
        return torch.stack([self.unpack(encoded.row(c), n, int(k)) for c, k in enumerate(keys_of(key, count))])


def _clients(encoded: Encoded) -> int | None:
    """How many clients' encodings these are; `None` for one without an axis."""
    for part in encoded.parts.values():
        if isinstance(part, Ragged) or part.ndim > 1:
            return len(part.lengths) if isinstance(part, Ragged) else part.shape[0]
    return None


@register("codec", "identity", "none")
@dataclass(frozen=True)
class Identity(Codec):
    """Sends the numbers as they are."""

    elementwise: ClassVar[bool] = True
    unbiased: ClassVar[bool] = True
    takes: ClassVar[Literal["floats", "any"]] = "any"
    gives: ClassVar[Literal["floats", "bytes", "same"]] = "same"

    def encode(self, values):
        return Encoded({"values": values})

    def decode(self, encoded, n):
        return encoded.parts["values"]

    def sizes(self, n, width=4):
        return 0, n, width

    def bound(self, values):
        return 0.0


@dataclass(frozen=True)
class Chain(Codec):
    """codecs[0] | codecs[1] | ...: each encodes the part "values" of the one before; the other parts are sent as they are."""

    codecs: tuple[Codec, ...]

    def __post_init__(self):
        if not self.codecs:
            raise ValueError("codecs: () is an empty chain; Identity() sends the numbers as they are")
        wrong = first_invalid(self.codecs)
        if wrong:
            raise ValueError(f"codecs: {wrong[1]}")

    @property
    def elementwise(self) -> bool:  # type: ignore[override]
        return all(c.elementwise for c in self.codecs)

    @property
    def draws(self) -> bool:  # type: ignore[override]
        return any(c.draws for c in self.codecs)

    @property
    def unbiased(self) -> bool:  # type: ignore[override]
        return all(c.unbiased for c in self.codecs)

    @property
    def takes(self):  # type: ignore[override]
        return "floats" if any(c.takes == "floats" for c in self.codecs) else "any"

    @property
    def gives(self):  # type: ignore[override]
        return next((c.gives for c in reversed(self.codecs) if c.gives != "same"), "same")

    def encode(self, values, key=0):
        if values.ndim > 1 and not all(c.fixed for c in self.codecs[:-1]):
            rows = values.reshape(values.shape[:-1].numel(), values.shape[-1])
            return Encoded.stacked([self.encode(row.clone(), k) for row, k in zip(rows, keys_of(key, len(rows)))])
        parts: dict[str, Tensor | Ragged] = {}
        for i, codec in enumerate(self.codecs):
            if i:
                values = parts.pop("values")
            encoded = encode(codec, values, _link_key(codec, key, i)).parts
            parts |= {name if name == "values" else f"{i}.{name}": part for name, part in encoded.items()}
        return Encoded(parts)

    def decode(self, encoded, n, key=0):
        count = _clients(encoded)
        if count is not None and not all(c.fixed for c in self.codecs[:-1]):
            return torch.stack([self.decode(encoded.row(c), n, k) for c, k in enumerate(keys_of(key, count))])
        lengths = [n]
        for i, codec in enumerate(self.codecs[:-1]):
            length = codec.length(self._own(encoded, i), lengths[-1])
            if length is None:  # the receiver could not tell how many numbers the next codec holds
                raise ValueError(f"codecs: {codec} has a size that depends on the numbers; it can only end a chain")
            lengths.append(length)
        values = {name: part for name, part in encoded.parts.items() if name == "values"}
        for i in reversed(range(len(self.codecs))):
            own, codec = self._own(encoded, i), self.codecs[i]
            values = {"values": decode(codec, Encoded({**own.parts, **values}), lengths[i], _link_key(codec, key, i))}
        return values["values"]

    def _own(self, encoded: Encoded, i: int) -> Encoded:
        """The parts of codecs[i], but for "values"."""
        return Encoded({name[len(f"{i}.") :]: p for name, p in encoded.parts.items() if name.startswith(f"{i}.")})

    def sizes(self, n, width=4):
        beside = 0
        for codec in self.codecs:
            sizes = codec.sizes(n, width)
            if sizes is None:
                return None
            more, n, width = sizes
            beside += more
        return beside, n, width

    @property
    def fixed(self) -> bool:
        return all(c.fixed for c in self.codecs)

    def length(self, encoded, n):
        for i, codec in enumerate(self.codecs):
            n = None if n is None else codec.length(self._own(encoded, i), n)
        return n

    def bound(self, values):
        """Known where at most one codec is not exact."""
        lossy = [
            c
            for c in self.codecs
            if not (c.wraps or c.gives == "bytes" and c.takes == "any" or isinstance(c, Identity))
        ]
        return lossy[0].bound(values) if len(lossy) == 1 else None if lossy else 0.0

    def fitted(self, shapes):
        first = next((i for i, c in enumerate(self.codecs) if not c.wraps), 0)
        codec = self.codecs[first].fitted(shapes)
        if codec is self.codecs[first]:
            return self
        return Chain((*self.codecs[:first], codec, *self.codecs[first + 1 :]))


def _link_key(codec: Codec, key: Key, i: int) -> Key:
    return hash64(key, i) if codec.draws else 0


def first_invalid(codecs: Sequence[Codec]) -> tuple[int, str] | None:
    """(place, what is wrong) of the first codec that cannot stand where it does."""
    made, maker = "floats", None
    for i, codec in enumerate(codecs):
        if codec.wraps and not all(c.wraps for c in codecs[:i]):
            return i, f"{codec} changes what is encoded; put it in front of {codecs[0]}"
        if codec.takes == "floats" and made == "bytes":
            return (
                i,
                f"{codec} takes floating numbers, and {maker} before it has made bytes of them; put it in front of that",
            )
        if codec.gives != "same":
            made, maker = codec.gives, codec
    return None


def find_wrapper(codec: Codec, kind: type) -> Any:
    """The codec of that kind that wraps the others, or `None`."""
    codecs = codec.codecs if isinstance(codec, Chain) else (codec,)
    return next((c for c in codecs if isinstance(c, kind)), None)


# -- a group of a message ---------------------------------------------------------------------------------------------
def up_key(seed: int, clients: int | np.ndarray, number: int, group: str) -> Key:
    """Of what clients send in dispatch `number`."""
    return hash64(seed, clients, number, "codec", group)


def down_key(seed: int, number: int, group: str, client: int | None = None, version: int | None = None) -> Key:
    """Of what the server sends in dispatch `number`: to all, to one client alone, or, whatever the dispatch, a version of a
    static group."""
    if version is not None:
        return hash64(seed, version, "codec/static", group)
    return (
        hash64(seed, number, "codec/down", group)
        if client is None
        else hash64(seed, number, client, "codec/own", group)
    )


@dataclass(frozen=True)
class Sizes:
    """Of one group, per client: bytes of the raw tensors (of sparse ones the values alone), bytes after the codec (an array (C,) where
    they differ), arrays that a message would carry."""

    payload_bytes: int
    encoded_bytes: int | np.ndarray
    arrays: int


def transmit(codec: Codec, tree: Tree, count: int | None = None, key: Key = 0) -> tuple[Tree, Sizes]:
    """What arrives of `tree`, and what it took; with `count` every leaf holds that many clients along a leading axis, and `key`
    may be an array of as many.

    Floating Params (each dtype's tensors as one vector) and dense floating tensors go through the codec. Integers, keys and
    counts of tables are sent as they are, positions of sparse vectors packed to bits; the floating values of both as they are
    too, unless the codec is elementwise. Plain values are not counted. The identity copies nothing: the very tree arrives.
    """
    link = Link(codec, count, key)
    arrived = link.send(tree)
    return tree if link.identity else arrived, Sizes(link.payload, link.encoded, link.arrays)


class Link:
    """One walk over a group: sends the leaves and adds up what they take. `as_is`, `through` and `places` are the three ways a
    leaf can go; here both ends are one, a link between machines overrides them."""

    def __init__(self, codec: Codec, count: int | None, key: Key = 0):
        self.codec, self.identity = codec, isinstance(codec, Identity)
        self.batch = () if count is None else (count,)
        self.payload = self.arrays = 0
        self.encoded: Any = 0
        self.key, self.vectors = key, 0

    def send(self, node: Tree) -> Tree:
        if isinstance(node, Params):
            return self._params(node)
        if isinstance(node, Tensor):
            return self._dense(node) if node.is_floating_point() else self._raw(node)
        if isinstance(node, Table):
            return Table(self._raw(node.keys), self._values(node.values), self._raw(node.counts))
        if isinstance(node, Sparse):
            return Sparse(self._positions(node.positions, node.size), self._values(node.values), node.size)
        if isinstance(node, dict):
            return {k: self.send(v) for k, v in node.items()}
        if isinstance(node, tuple) and hasattr(node, "_fields"):
            return type(node)(*map(self.send, node))
        if isinstance(node, (list, tuple)):
            return type(node)(map(self.send, node))
        if dataclasses.is_dataclass(node) and not isinstance(node, type):
            return type(node)(**{f.name: self.send(getattr(node, f.name)) for f in dataclasses.fields(node)})
        if node is None or isinstance(node, (bool, int, float, str)):
            return node
        raise ValueError(
            f"a message holds Params, tensors, Table, Sparse and plain values, got {type(node)}; torch.as_tensor(...) it"
        )

    def _params(self, params: Params) -> Params:
        nbytes, arrays, layouts = _by_dtype(params.layout)
        self.arrays += arrays
        self.payload += nbytes
        if self.identity:
            self.encoded += nbytes
            return self.as_is(params)
        buffers = []
        for layout, buffer in zip(layouts, params.buffers):
            if buffer.is_floating_point():
                shapes = tuple(e.shape for e in layout.entries.values())
                flat = self._through(Params(layout, (buffer,)).compact(), shapes)
                buffer = Params.expand(layout, flat).buffers[0]
            else:
                self.encoded += layout.nbytes
                buffer = self.as_is(Params(layout, (buffer,))).buffers[0]
            buffers.append(buffer)
        return Params(params.layout, tuple(buffers))

    def _dense(self, tensor: Tensor) -> Tensor:
        if self.identity:
            return self._raw(tensor)
        self.arrays += 1
        self.payload += self._nbytes(tensor)
        shape = tuple(tensor.shape[len(self.batch) :])
        return self._through(tensor.reshape(*self.batch, self._numel(tensor)), (shape,)).reshape(tensor.shape)

    def _values(self, tensor: Tensor) -> Tensor:
        """Values that have their positions beside them: a codec that leaves some out would leave those of others."""
        return self._dense(tensor) if self.codec.elementwise and tensor.is_floating_point() else self._raw(tensor)

    def _raw(self, tensor: Tensor) -> Tensor:
        nbytes = self._nbytes(tensor)
        self.arrays += 1
        self.payload += nbytes
        self.encoded += nbytes
        return self.as_is(tensor)

    def _positions(self, positions: Tensor, size: int) -> Tensor:
        self.arrays += 1
        return self.places(positions, size)

    def _through(self, flat: Tensor, shapes: Shapes) -> Tensor:
        codec = self.codec.fitted(shapes)
        key = hash64(self.key, self.vectors) if codec.draws else 0
        self.vectors += 1
        return self.through(codec, flat, key).to(flat.dtype)

    def as_is(self, leaf: Params | Tensor) -> Any:
        return leaf

    def places(self, positions: Tensor, size: int) -> Tensor:
        self.encoded += pack_positions(positions, size).shape[-1]
        return positions  # what unpacking gives

    def through(self, codec: Codec, flat: Tensor, key: Key) -> Tensor:
        encoded = encode(codec, flat, key)
        self.encoded = self.encoded + encoded.nbytes
        return decode(codec, encoded, flat.shape[-1], key)

    def _numel(self, tensor: Tensor) -> int:
        return tensor.numel() // self.batch[0] if self.batch else tensor.numel()

    def _nbytes(self, tensor: Tensor) -> int:
        return self._numel(tensor) * tensor.itemsize


@functools.cache
def _by_dtype(layout: Layout) -> tuple[int, int, tuple[Layout, ...]]:
    """(bytes, tensors, the layout of each buffer by itself); there are few layouts, and every message asks."""
    parts: list[list] = [[] for _ in layout.dtypes]
    for e in layout.entries.values():
        parts[e.buffer].append((e.name, e.shape, layout.dtypes[e.buffer]))
    return layout.nbytes, len(layout.entries), tuple(Layout.of(part) for part in parts)


def forecast(codec: Codec, tree: Tree) -> int | None:
    """The encoded bytes of a group like `tree`, known before it is there; `None` if they depend on its numbers."""
    link = _Forecast(codec, None)
    link.send(tree)
    return None if link.unknown else int(link.encoded)


class _Forecast(Link):
    unknown = False

    def places(self, positions, size):
        self.unknown = True
        return positions

    def through(self, codec, flat, key):
        sizes = codec.sizes(flat.shape[-1], flat.itemsize)
        if sizes is None:
            self.unknown = True
        else:
            self.encoded += sizes[0] + sizes[1] * sizes[2]
        return flat
