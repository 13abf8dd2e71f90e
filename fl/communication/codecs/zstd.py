"""Zstandard: the bytes of what is left, without loss.

    values of any kind -> header (kind, count) and a zstd frame of their bytes;   as they are, where that is no longer

Exact.   Bytes: 5, and at most those of the values; how many depends on them, so that it ends a chain.
With `shuffle` the bytes of numbers wider than one lie by significance (all first bytes, then all second, ...), which exponents
compress better in.   Collet, Kucherawy 2021, RFC 8878.   Neutral: any.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch

from fl.communication.blocks import BLOCK
from fl.communication.codec import Encoded, OneByOne
from fl.registry import register

_KINDS = (
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)
_HEADER = struct.Struct("<BI")
_PLAIN = 0x80  # set in the header's kind where the bytes are as they were


@register("codec", "zstd")
@dataclass(frozen=True, kw_only=True)
class Zstd(OneByOne):
    level: int = 3
    shuffle: bool = True

    draws = False
    unbiased: ClassVar[bool] = True
    takes: ClassVar[Literal["floats", "any"]] = "any"
    gives: ClassVar[Literal["floats", "bytes", "same"]] = "bytes"

    def __post_init__(self):
        if not 1 <= self.level <= 22:
            raise ValueError(f"level: {self.level} is not in 1..22; higher is smaller and slower")

    def pack(self, values, key):
        if values.dtype not in _KINDS:
            raise ValueError(f"{self} has no code for {values.dtype}")
        plain = _numbers(values.contiguous())
        plain = (_apart(plain) if self.shuffle else plain).view(np.uint8)
        packed = np.frombuffer(pa.Codec("zstd", self.level).compress(plain) if plain.size else b"", np.uint8)
        kind = _KINDS.index(values.dtype)
        if packed.size >= plain.size:
            kind, packed = kind | _PLAIN, plain
        header = np.frombuffer(_HEADER.pack(kind, len(values)), np.uint8)
        return Encoded({"values": torch.from_numpy(np.concatenate([header, packed]))})

    def unpack(self, encoded, n, key):
        sent = encoded.parts["values"].numpy()
        kind, count = _HEADER.unpack(sent[: _HEADER.size].tobytes())
        dtype, body = _KINDS[kind & ~_PLAIN], sent[_HEADER.size :]
        if not kind & _PLAIN:
            body = np.frombuffer(
                pa.Codec("zstd").decompress(np.ascontiguousarray(body), count * dtype.itemsize), np.uint8
            )
        out = torch.empty(count, dtype=dtype)
        if self.shuffle:
            _together(body, _numbers(out))
        else:
            _numbers(out).view(np.uint8)[...] = body
        return out

    def bound(self, values):
        return 0.0


def _numbers(tensor: torch.Tensor) -> np.ndarray:
    """The bits of a tensor, as unsigned numbers as wide as its own."""
    return tensor.view(torch.uint8).numpy().view(f"<u{tensor.itemsize}")


def _apart(numbers: np.ndarray) -> np.ndarray:
    """Numbers of w bytes -> all first bytes, all second ones, ..., by blocks."""
    width = numbers.itemsize
    out = np.empty((width, len(numbers)), np.uint8)
    for a in range(0, len(numbers), BLOCK):
        for place in range(width):
            out[place, a : a + BLOCK] = numbers[a : a + BLOCK] >> np.array(8 * place, numbers.dtype)
    return out.reshape(-1)


def _together(body: np.ndarray, out: np.ndarray) -> None:
    """The inverse of `_apart`, into `out`."""
    planes = body.reshape(out.itemsize, -1)
    for a in range(0, len(out), BLOCK):
        block = out[a : a + BLOCK]
        block[...] = planes[0, a : a + BLOCK]
        for place in range(1, out.itemsize):
            block |= planes[place, a : a + BLOCK].astype(out.dtype) << np.array(8 * place, out.dtype)
