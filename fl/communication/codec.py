"""Codecs turn numbers into bytes and back. The ledger counts the encoded bytes; the receiver sees the decoded numbers.

    values (*batch, n)  -- encode -->  Encoded: named parts, packed bytes  -- decode -->  values (*batch, n)

Leading axes are clients. Encoding many clients at once gives each client the bytes that it would have alone.

A codec that draws random numbers takes a `key` (`fl.communication.keys`). Sender and receiver derive the same key, so
random positions and rotations need no bytes. `fl.communication.chain` puts codecs one after another;
`fl.communication.transmit` sends whole groups of tensors through a codec.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from fl.communication.keys import Key, keys_of
from fl.tensors.serialise import raw_bytes

Shapes = tuple[tuple[int, ...], ...]
Input = Literal["floats", "any"]
Output = Literal["floats", "bytes", "same"]


# -- encoded values ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True, eq=False)
class RaggedTensor:
    """A part whose length differs between clients.

    `data` (total,) holds the rows one after another; `lengths` int64 (C,) holds the length of each client's row.
    """

    data: Tensor
    lengths: np.ndarray

    @staticmethod
    def stack(rows: Sequence[Tensor]) -> Tensor | RaggedTensor:
        """Stack the rows of C clients; an ordinary tensor (C, length) if all rows have the same length."""
        lengths = np.array([len(row) for row in rows])
        ragged = (lengths != lengths[0]).any()
        return RaggedTensor(torch.cat(list(rows)), lengths) if ragged else torch.stack(list(rows))

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return self.data.itemsize

    def __getitem__(self, client: int) -> Tensor:
        end = int(self.lengths[: client + 1].sum())
        return self.data[end - int(self.lengths[client]) : end]


@dataclass(frozen=True)
class Encoded:
    """Encoded values of one client or of many.

    `parts` maps names to tensors (*batch, length), in the order of sending. A part whose length depends on the numbers
    is a `RaggedTensor`. The parts of a single client are tensors (length,).
    """

    parts: Mapping[str, Tensor | RaggedTensor]

    @staticmethod
    def stack(rows: Sequence[Encoded]) -> Encoded:
        """Stack the encodings of single clients."""
        return Encoded({name: RaggedTensor.stack([_one(row.parts[name]) for row in rows]) for name in rows[0].parts})

    @property
    def clients(self) -> int | None:
        """Number of clients; None for the encoding of a single client, which has no client axis."""
        for part in self.parts.values():
            if isinstance(part, RaggedTensor) or part.ndim > 1:
                return len(part.lengths) if isinstance(part, RaggedTensor) else part.shape[0]
        return None

    def row(self, client: int) -> Encoded:
        """Select the encoding of one client."""
        return Encoded({name: part[client] for name, part in self.parts.items()})

    def tensor(self, name: str) -> Tensor:
        """Return a part that has the same length for all clients; a TypeError if it is ragged."""
        return _one(self.parts[name])

    @property
    def nbytes(self) -> int | np.ndarray:
        """Bytes per client: an int, or an array (C,) if clients differ."""
        total: int | np.ndarray = 0
        for part in self.parts.values():
            total = total + (part.lengths if isinstance(part, RaggedTensor) else part.shape[-1]) * part.itemsize
        return total

    def __bytes__(self) -> bytes:
        """The bytes that one client sends: len(bytes(encoded)) == encoded.nbytes."""
        if self.clients is not None:
            raise ValueError(
                f"bytes() takes the encoding of one client, got several clients ({list(self.parts)}); use row(client)"
            )
        return b"".join(raw_bytes(_one(part)) for part in self.parts.values() if _one(part).numel())


def _one(part: Tensor | RaggedTensor) -> Tensor:
    if isinstance(part, RaggedTensor):
        raise TypeError("this part has a different length for each client; take one client with row(client) first")
    return part


# -- the interface ----------------------------------------------------------------------------------------------------
class Codec:
    """Base of codecs. A codec is a frozen dataclass of hyper-parameters.

    Subclasses set these as class attributes (`draws = True`) or as properties:

        elementwise   each number is encoded by itself, so the codec also suits the values of tables and sparse vectors
        draws         encode and decode take a `key`, an int or uint64 (C,), and are functions of it
        exact         the decoded values have the bits of what was encoded
        linear        with one key, a sum of encodings is the encoding of the sum, up to rounding. The only part is
                      "values", of floats and of known length. Secure aggregation takes such codecs
        unbiased      the mean of the decoded values over keys is what was encoded; true for exact codecs
        takes         input: "floats", or "any" dtype
        gives         dtype of the part "values": "floats", "bytes" (only codecs that take "any" may follow), or "same"
        wraps         changes which numbers are encoded, not how. It stands before all other codecs of a chain, and its
                      encode and decode return the numbers unchanged
    """

    @property
    def elementwise(self) -> bool:
        """See the class; the default is False."""
        return False

    @property
    def draws(self) -> bool:
        """See the class; the default is False."""
        return False

    @property
    def exact(self) -> bool:
        """See the class; the default is False."""
        return False

    @property
    def linear(self) -> bool:
        """See the class; the default is False."""
        return False

    @property
    def unbiased(self) -> bool:
        """See the class; the default is False."""
        return False

    @property
    def takes(self) -> Input:
        """See the class; the default is "floats"."""
        return "floats"

    @property
    def gives(self) -> Output:
        """See the class; the default is "floats"."""
        return "floats"

    @property
    def wraps(self) -> bool:
        """See the class; the default is False."""
        return False

    def encode(self, values: Tensor) -> Encoded:
        """Encode floating values (*batch, n). A codec with `draws` takes a second argument, `key`."""
        raise NotImplementedError

    def decode(self, encoded: Encoded, n: int) -> Tensor:
        """Decode to (*batch, n), in float32 or, if the codec keeps it, in the dtype that was encoded.

        A codec with `draws` takes a third argument, `key`.
        """
        raise NotImplementedError

    def sizes(self, n: int, width: int = 4) -> tuple[int, int, int] | None:
        """Return the size of n encoded numbers of `width` bytes each; None if it depends on the numbers.

        The tuple is (bytes of all other parts, length of the part "values", bytes per element of "values").
        """
        return None

    def exact_size(self, n: int) -> int | None:
        """Return the encoded bytes of n float32 numbers; None if they depend on the numbers."""
        sizes = self.sizes(n)
        return None if sizes is None else sizes[0] + sizes[1] * sizes[2]

    @property
    def fixed_length(self) -> bool:
        """Whether the part "values" has the same length for all clients, whatever their numbers."""
        return self.sizes(1) is not None

    def length(self, encoded: Encoded, n: int) -> int | None:
        """Return the length of one client's part "values" from the other parts; None if that is impossible."""
        sizes = self.sizes(n)
        return None if sizes is None else sizes[1]

    def bound(self, values: Tensor) -> float | None:
        """Return the largest Euclidean norm of the error of values (n,) over all keys; None if there is no bound."""
        return None

    def for_shapes(self, shapes: Shapes) -> Codec:
        """Return the codec for vectors that hold tensors of these shapes, one after another."""
        return self


class Rounding(Codec):
    """Base of codecs that round numbers to levels.

    `mode` "stochastic" rounds up or down at random without bias; every other mode is deterministic.
    """

    gives: ClassVar[Output] = "bytes"
    mode: str

    @property
    def draws(self) -> bool:
        return self.mode == "stochastic"

    @property
    def unbiased(self) -> bool:
        return self.mode == "stochastic"


class PerClientCodec(Codec):
    """Base of codecs that encode one client at a time: they define `encode_one` and `decode_one`."""

    draws: ClassVar[bool] = True

    def encode_one(self, values: Tensor, key: int) -> Encoded:
        """Encode the values (n,) of one client."""
        raise NotImplementedError

    def decode_one(self, encoded: Encoded, n: int, key: int) -> Tensor:
        """Decode the values (n,) of one client."""
        raise NotImplementedError

    def encode(self, values: Tensor, key: Key = 0) -> Encoded:
        if values.ndim == 1:
            return self.encode_one(values, int(keys_of(key, 1)[0]))
        rows = values.reshape(values.shape[:-1].numel(), values.shape[-1])
        return Encoded.stack([self.encode_one(row.clone(), int(k)) for row, k in zip(rows, keys_of(key, len(rows)))])

    def decode(self, encoded: Encoded, n: int, key: Key = 0) -> Tensor:
        if encoded.clients is None:
            return self.decode_one(encoded, n, int(keys_of(key, 1)[0]))
        keys = keys_of(key, encoded.clients)
        return torch.stack([self.decode_one(encoded.row(c), n, int(k)) for c, k in enumerate(keys)])


# -- with or without a key --------------------------------------------------------------------------------------------
def encode(codec: Codec, values: Tensor, key: Key = 0) -> Encoded:
    """Call `codec.encode`, with the key if the codec draws."""
    return codec.encode(values, *([key] if codec.draws else []))


def decode(codec: Codec, encoded: Encoded, n: int, key: Key = 0) -> Tensor:
    """Call `codec.decode`, with the key if the codec draws."""
    return codec.decode(encoded, n, *([key] if codec.draws else []))
