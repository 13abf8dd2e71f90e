"""Chains of codecs, and the rule for their order.

    top_k | fp16        v --> positions, values       each codec encodes the part "values" of the codec before it
                                         values --> values

The other parts are sent unchanged. In the encoding of a chain, "1.NAME" is part NAME of
codecs[1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from fl.communication.codec import Codec, Encoded, Input, Output, RaggedTensor, Shapes, decode, encode
from fl.communication.keys import Key, keys_of
from fl.tensors.random import hash64

C = TypeVar("C", bound=Codec)


@dataclass(frozen=True)
class Chain(Codec):
    """codecs[0] | codecs[1] | ...: each codec encodes the part "values" of the codec before it.

    Args:
        codecs: At least one codec, in an order that `first_invalid` accepts.
    """

    codecs: tuple[Codec, ...]

    def __post_init__(self) -> None:
        if not self.codecs:
            raise ValueError("codecs: () is an empty chain; Identity() sends the numbers unchanged")
        if wrong := first_invalid(self.codecs):
            raise ValueError(f"codecs: {wrong[1]}")

    @property
    def elementwise(self) -> bool:
        return all(c.elementwise for c in self.codecs)

    @property
    def draws(self) -> bool:
        return any(c.draws for c in self.codecs)

    @property
    def exact(self) -> bool:
        return all(c.exact for c in self.codecs)

    @property
    def linear(self) -> bool:
        return all(c.linear for c in self.codecs)

    @property
    def unbiased(self) -> bool:
        return all(c.unbiased for c in self.codecs)

    @property
    def takes(self) -> Input:
        return "floats" if any(c.takes == "floats" for c in self.codecs) else "any"

    @property
    def gives(self) -> Output:
        return next((c.gives for c in reversed(self.codecs) if c.gives != "same"), "same")

    @property
    def fixed_length(self) -> bool:
        return all(c.fixed_length for c in self.codecs)

    def encode(self, values: Tensor, key: Key = 0) -> Encoded:
        if values.ndim > 1 and not self._rectangular:
            rows = values.reshape(values.shape[:-1].numel(), values.shape[-1])
            return Encoded.stack([self.encode(row.clone(), k) for row, k in zip(rows, keys_of(key, len(rows)))])
        parts: dict[str, Tensor | RaggedTensor] = {}
        for i, codec in enumerate(self.codecs):
            if i:
                before = parts.pop("values")
                assert isinstance(before, Tensor), f"{codec} follows a codec of fixed length"
                values = before
            encoded = encode(codec, values, _codec_key(codec, key, i)).parts
            parts |= {name if name == "values" else f"{i}.{name}": part for name, part in encoded.items()}
        return Encoded(parts)

    def decode(self, encoded: Encoded, n: int, key: Key = 0) -> Tensor:
        count = encoded.clients
        if count is not None and not self._rectangular:
            return torch.stack([self.decode(encoded.row(c), n, k) for c, k in enumerate(keys_of(key, count))])
        lengths = [n]
        for i, codec in enumerate(self.codecs[:-1]):
            length = codec.length(self._parts_of(encoded, i), lengths[-1])
            if length is None:  # the receiver cannot know how many numbers the next codec holds
                raise ValueError(f"codecs: the size of {codec} depends on the numbers, so it can only end a chain")
            lengths.append(length)
        values = {name: part for name, part in encoded.parts.items() if name == "values"}
        for i in reversed(range(len(self.codecs))):
            codec, parts = self.codecs[i], {**self._parts_of(encoded, i).parts, **values}
            values = {"values": decode(codec, Encoded(parts), lengths[i], _codec_key(codec, key, i))}
        return Encoded(values).tensor("values")

    @property
    def _rectangular(self) -> bool:
        """Whether all clients have equally many numbers between two codecs, so that they can be encoded together."""
        return all(c.fixed_length for c in self.codecs[:-1])

    def _parts_of(self, encoded: Encoded, i: int) -> Encoded:
        """The parts of codecs[i], without "values"."""
        prefix = f"{i}."
        return Encoded({k.removeprefix(prefix): part for k, part in encoded.parts.items() if k.startswith(prefix)})

    def sizes(self, n: int, width: int = 4) -> tuple[int, int, int] | None:
        others = 0
        for codec in self.codecs:
            sizes = codec.sizes(n, width)
            if sizes is None:
                return None
            more, n, width = sizes
            others += more
        return others, n, width

    def length(self, encoded: Encoded, n: int) -> int | None:
        length: int | None = n
        for i, codec in enumerate(self.codecs):
            length = None if length is None else codec.length(self._parts_of(encoded, i), length)
        return length

    def bound(self, values: Tensor) -> float | None:
        """The bound of the only codec that is not exact; None if several are not exact."""
        lossy = [c for c in self.codecs if not c.exact]
        return lossy[0].bound(values) if len(lossy) == 1 else None if lossy else 0.0

    def for_shapes(self, shapes: Shapes) -> Codec:
        first = next((i for i, c in enumerate(self.codecs) if not c.wraps), 0)
        codec = self.codecs[first].for_shapes(shapes)
        if codec is self.codecs[first]:
            return self
        return Chain((*self.codecs[:first], codec, *self.codecs[first + 1 :]))


def _codec_key(codec: Codec, key: Key, i: int) -> Key:
    return hash64(key, i) if codec.draws else 0


def first_invalid(codecs: Sequence[Codec]) -> tuple[int, str] | None:
    """Find the first codec that may not stand at its place: (place, reason), or None if the order is valid.

    Codecs that wrap stand first. A codec that takes floats may not follow one that gives bytes.
    """
    given, maker = "floats", None
    for i, codec in enumerate(codecs):
        if codec.wraps and not all(c.wraps for c in codecs[:i]):
            return i, f"{codec} changes what is encoded; put it in front of {codecs[0]}"
        if codec.takes == "floats" and given == "bytes":
            return i, f"{codec} takes floating numbers, but {maker} before it gives bytes; put it in front of that"
        if codec.gives != "same":
            given, maker = codec.gives, codec
    return None


def find_wrapper(codec: Codec, kind: type[C]) -> C | None:
    """Return the wrapping codec of class `kind` at the front of a codec, or None."""
    codecs = codec.codecs if isinstance(codec, Chain) else (codec,)
    return next((c for c in codecs if isinstance(c, kind)), None)
