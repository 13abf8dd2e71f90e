"""Compress the remaining bytes without loss (Zstandard).

    values of any dtype -> header (dtype, count) and a zstd frame of their bytes, or the plain bytes if that is shorter

Exact.   Bytes: 5, and at most the bytes of the values. The size depends on the numbers, so this codec ends a chain.
With `shuffle` the bytes of wide numbers are grouped by significance (all first bytes, then all second bytes, ...),
because exponents compress better in groups.   Collet, Kucherawy 2021, RFC 8878.   Neutral: always.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from fl.checks import within
from fl.communication.blocks import BLOCK
from fl.communication.codec import Encoded, Input, Output, PerClientCodec
from fl.registry import register

_DTYPES = (
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
_PLAIN = 0x80  # this bit of the header's dtype marks plain bytes


@register("codec", "zstd")
@dataclass(frozen=True, kw_only=True)
class Zstd(PerClientCodec):
    """Compress with Zstandard.

    Args:
        level: Compression level, 1 to 22; higher is smaller and slower.
        shuffle: Whether to group bytes by significance.
    """

    level: int = 3
    shuffle: bool = True

    draws: ClassVar[bool] = False
    exact: ClassVar[bool] = True
    unbiased: ClassVar[bool] = True
    takes: ClassVar[Input] = "any"
    gives: ClassVar[Output] = "bytes"

    def __post_init__(self) -> None:
        within("[1, 22]", level=self.level, hint="higher is smaller and slower")

    def encode_one(self, values: Tensor, key: int) -> Encoded:
        if values.dtype not in _DTYPES:
            raise ValueError(f"{self} cannot encode {values.dtype}")
        plain = _numbers(values.contiguous())
        plain = (_by_significance(plain) if self.shuffle else plain).view(np.uint8)
        packed = np.frombuffer(pa.Codec("zstd", self.level).compress(plain) if plain.size else b"", np.uint8)
        code = _DTYPES.index(values.dtype)
        if packed.size >= plain.size:
            code, packed = code | _PLAIN, plain
        header = np.frombuffer(_HEADER.pack(code, len(values)), np.uint8)
        return Encoded({"values": torch.from_numpy(np.concatenate([header, packed]))})

    def decode_one(self, encoded: Encoded, n: int, key: int) -> Tensor:
        sent = encoded.tensor("values").numpy()
        code, count = _HEADER.unpack(sent[: _HEADER.size].tobytes())
        dtype, body = _DTYPES[code & ~_PLAIN], sent[_HEADER.size :]
        if not code & _PLAIN:
            body = np.frombuffer(
                pa.Codec("zstd").decompress(np.ascontiguousarray(body), count * dtype.itemsize), np.uint8
            )
        out = torch.empty(count, dtype=dtype)
        if self.shuffle:
            _restore_order(body, _numbers(out))
        else:
            _numbers(out).view(np.uint8)[...] = body
        return out

    def bound(self, values: Tensor) -> float:
        return 0.0


def _numbers(values: Tensor) -> np.ndarray:
    """View the bits of a tensor as unsigned integers of the same width."""
    return values.view(torch.uint8).numpy().view(f"<u{values.itemsize}")


def _by_significance(numbers: np.ndarray) -> np.ndarray:
    """Group the bytes of numbers: all first bytes, all second bytes, ...; block by block."""
    width = numbers.itemsize
    out = np.empty((width, len(numbers)), np.uint8)
    for a in range(0, len(numbers), BLOCK):
        for place in range(width):
            out[place, a : a + BLOCK] = numbers[a : a + BLOCK] >> np.array(8 * place, numbers.dtype)
    return out.reshape(-1)


def _restore_order(body: np.ndarray, out: np.ndarray) -> None:
    """Undo `_by_significance`, into `out`."""
    planes = body.reshape(out.itemsize, -1)
    for a in range(0, len(out), BLOCK):
        block = out[a : a + BLOCK]
        block[...] = planes[0, a : a + BLOCK]
        for place in range(1, out.itemsize):
            block |= planes[place, a : a + BLOCK].astype(out.dtype) << np.array(8 * place, out.dtype)
