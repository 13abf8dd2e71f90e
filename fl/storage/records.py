"""Records in segments: where they lie, what they look like, and their checksums.

    location    int64 (segment, offset in its file, length), in bytes
    record      | checksum | skeleton length | skeleton text | pad to 64 | buffers of the tree, on 64-byte boundaries |

segments.py writes and reads them.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xxhash
from torch import Tensor

from fl.tensors.buffers import pooled_buffer
from fl.tensors.params import ALIGNMENT
from fl.tensors.serialise import aligned_offsets, shapes, unflatten
from fl.tensors.trees import Tree

NO_RECORD = (-1, 0, 0)  # the location of no record
FILES = 1 << 42  # numbers of files; segments that differ by a multiple lie in one file
FRONT = struct.Struct("<QQ")  # checksum, length of the skeleton
SUMMED = 8  # the checksum is that of the bytes from here on
LARGE = 1 << 18  # bytes of records that are read and written one by one
BUFFERS = 500  # most tensors of such a record: one call takes 1,024 pieces, and each tensor may need a pad


@dataclass(frozen=True)
class Form:
    """What records have in common that can be stacked.

    header: from the length of the skeleton to its end.
    skeleton: structure of the tree.
    length: bytes of a record.
    """

    header: bytes
    skeleton: str
    length: int

    def is_large(self, length: int) -> bool:
        """Whether records of this form and length are read one by one."""
        return self.length == length > LARGE and 0 < len(self.specs) <= BUFFERS

    @functools.cached_property
    def specs(self) -> list[tuple[torch.dtype, tuple[int, ...], int]]:
        """The dtype, the shape and the bytes of each tensor."""
        return _specs(self.skeleton)

    @functools.cached_property
    def offsets(self) -> list[int]:
        """Where each tensor begins in a record."""
        return aligned_offsets([SUMMED + len(self.header), *(size for _, _, size in self.specs)])[0][1:]


def form_of(record: np.ndarray, known: Form | None = None) -> Form:
    """Return the form of a record, uint8 (length,): `known` if it has that form."""
    size = SUMMED + FRONT.unpack_from(record.data)[1]
    header = bytes(record[SUMMED : SUMMED + size])
    if known is not None and known.header == header and known.length == len(record):
        return known
    return Form(header, header[FRONT.size - SUMMED :].decode(), len(record))


def file_of(segments: np.ndarray) -> np.ndarray:
    """Return the numbers of the files that segments lie in, (n,).

    >>> [int(file) for file in file_of(np.array([7, 5 * FILES + 7]))]
    [7, 7]
    """
    return segments % FILES


def segment_path(folder: Path, segment: int) -> Path:
    """Return the file of a segment in a folder."""
    return folder / f"{segment % FILES:012d}.seg"


def runs(locations: np.ndarray) -> Iterator[tuple[int, int, int, int]]:
    """Return (first, last, file, offset) of records first..last-1 at locations (n, 3) that follow one another."""
    owners, starts, length = file_of(locations[:, 0]), locations[:, 1], int(locations[0, 2])
    begins = np.ones(len(locations), bool)
    begins[1:] = (owners[1:] != owners[:-1]) | (starts[1:] != starts[:-1] + length)
    first = np.flatnonzero(begins)
    return zip(first.tolist(), [*first[1:].tolist(), len(locations)], owners[first].tolist(), starts[first].tolist())


def location_keys(locations: np.ndarray) -> np.ndarray:
    """Return a number for each location (n, 3), uint64 (n,): the seed of its checksum."""
    return locations[:, 0].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + locations[:, 1].astype(np.uint64)


def pad_of(length: int) -> bytes:
    """Return the zeros after `length` bytes, up to the next boundary."""
    return bytes(-length % ALIGNMENT)


def checksums(records: np.ndarray, locations: np.ndarray) -> np.ndarray:
    """Return the checksum of each record, uint8 (n, length), at locations (n, 3): uint64 (n,)."""
    seeds = location_keys(locations).tolist()
    return np.fromiter(map(xxhash.xxh3_64_intdigest, records[:, SUMMED:], seeds), np.uint64, len(records))


def stored_checksums(records: np.ndarray) -> np.ndarray:
    """Return the checksums that contiguous records, uint8 (n, length), hold: a view, uint64 (n,)."""
    return records.view("<u8")[:, 0]


def new_rows(count: int, length: int) -> Tensor:
    """Return uninitialised memory, uint8 (count, length). Its size is rounded up, so that few buffers serve all."""
    elements = 1 << (count * length // 4 - 1).bit_length()
    return pooled_buffer(elements).view(torch.uint8)[: count * length].view(count, length)


def _specs(skeleton: str) -> list[tuple[torch.dtype, tuple[int, ...], int]]:
    """Return the dtype, the shape and the bytes of each tensor of a skeleton."""
    return [(dtype, shape, math.prod(shape) * dtype.itemsize) for dtype, shape in shapes(skeleton)]


def shaped(memory: Tensor, dtype: torch.dtype, shape: tuple[int, ...], size: int) -> Tensor:
    """Return the first `size` bytes of each row of `memory` (..., bytes) as a tensor (..., *shape)."""
    if not size:  # torch views no bytes as numbers if a row has none
        return memory.new_empty((*memory.shape[:-1], *shape), dtype=dtype)
    return memory[..., :size].contiguous().view(dtype).view((*memory.shape[:-1], *shape))


def tree_of(form: Form, memory: Tensor, plain: bool = False) -> Tree:
    """Rebuild the tree of records in `memory`, uint8 (..., length)."""
    tensors = [shaped(memory[..., at:], *spec) for spec, at in zip(form.specs, form.offsets)]
    return unflatten(form.skeleton, tensors, plain)
