"""Append-only segments: records written by workers, read by their location (segment, offset, length).

    record   | checksum | skeleton length | skeleton text | pad to 64 | buffers of the tree, on 64-byte boundaries |

The checksum is the XXH3 (64 bits) of what follows it; every read compares it. A segment has one writer, and records
are never changed. The owner of the locations decides which records are current. A
record is a tree (`fl.tensors.serialise.flatten`): states of clients are text and numbers, never pickle.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xxhash
from torch import Tensor

from fl.storage import files
from fl.storage.growing import Damaged
from fl.tensors.params import ALIGNMENT
from fl.tensors.serialise import aligned_offsets, flatten, raw_bytes, shapes, unflatten
from fl.tensors.trees import Tree, row

NO_RECORD = (-1, 0, 0)  # the location of no record
_FRONT = struct.Struct("<QQ")  # checksum, length of the skeleton
_SUMMED = 8  # the checksum is that of the bytes from here on


@dataclass(frozen=True)
class Vector:
    """A vector in a segment, readable by any process that sees the folder.

    Args:
        path: File of the segment.
        offset: Position in the file, in bytes.
        length: Size in bytes.
        dtype: Name of the torch dtype.
    """

    path: str
    offset: int
    length: int
    dtype: str

    def open(self) -> Tensor:
        """Map the vector; changes are not written to the file."""
        array = np.memmap(self.path, np.uint8, "c", self.offset, (self.length,))
        return torch.from_numpy(array).view(getattr(torch, self.dtype))

    @property
    def location(self) -> tuple[int, int, int]:
        """Where the vector lies: (segment, offset, length)."""
        return int(Path(self.path).stem), self.offset, self.length

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.length // getattr(torch, self.dtype).itemsize

    def read(self, start: int = 0, stop: int | None = None, file: int | None = None) -> Tensor:
        """Return a copy of the elements from `start` up to `stop`, default all. Nothing of the file stays mapped.

        Args:
            start: first element.
            stop: element after the last one.
            file: descriptor of the segment's file, if it is open; many reads are quicker then.
        """
        if file is None:
            file = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                return self.read(start, stop, file)
            finally:
                os.close(file)
        dtype = getattr(torch, self.dtype)
        out = torch.empty((self.numel if stop is None else stop) - start, dtype=dtype, device="cpu")
        left, place = raw_bytes(out), self.offset + start * dtype.itemsize
        while len(left):  # one call reads 2 GiB at most
            count = os.preadv(file, [left], place)
            if not count:
                raise Damaged(f"{self.path} ends before byte {self.offset + self.length}")
            left, place = left[count:], place + count
        return out


class Segments:
    """The segments in one folder. Writes go to segment `own` (see `write_to`), which the first write creates.

    Attributes:
        folder: where the files lie.
        home: the folder in which the driver finds them; another one on other nodes (node_segments.py).
    """

    def __init__(self, folder: Path | str):
        self.folder, self.own = Path(folder), -1
        self.home = self.folder
        self.file: int | None = None
        self.end = 0
        self.maps: dict[int, mmap.mmap] = {}

    def path(self, segment: int) -> Path:
        """Return the file of a segment."""
        return segment_path(self.folder, segment)

    def write_to(self, segment: int) -> None:
        """Write to `segment` from now on."""
        if segment != self.own:
            self.close()
            self.own = segment

    def empty(self) -> None:
        """Restart segment `own`. Vectors that are already mapped stay readable."""
        self.close()
        files.remove(self.path(self.own))

    # -- writing -------------------------------------------------------------------------------------------------
    def append(self, tree: Tree) -> tuple[int, int, int]:
        """Write a tree; return its location."""
        skeleton, tensors = flatten(tree)
        text, buffers = skeleton.encode(), [raw_bytes(t.contiguous()) for t in tensors]
        found = xxhash.xxh3_64(_FRONT.pack(0, len(text))[_SUMMED:] + text + _pad(_FRONT.size + len(text)))
        for buffer in buffers:
            found.update(buffer)
            found.update(_pad(len(buffer)))
        return self._write([_FRONT.pack(found.intdigest(), len(text)) + text, *buffers])

    def append_rows(self, tree: Tree, count: int) -> np.ndarray:
        """Write the `count` trees stacked in `tree` as one record each; return their locations (count, 3)."""
        text = flatten(row(tree, 0))[0].encode()
        header = np.frombuffer(_FRONT.pack(0, len(text)) + text, np.uint8)
        tensors = flatten(tree)[1]
        sizes = [len(header), *(t[0].numel() * t.element_size() for t in tensors)]
        offsets, length = aligned_offsets(sizes)
        block = np.zeros((count, length), np.uint8)
        block[:, : len(header)] = header
        for tensor, offset, size in zip(tensors, offsets[1:], sizes[1:]):
            block[:, offset : offset + size] = tensor.reshape(count, -1).contiguous().view(torch.uint8).numpy()
        block[:, :_SUMMED] = _checksums(block).astype("<u8")[:, None].view(np.uint8)
        segment, at, _ = self._write([block.reshape(-1).data])
        start = at + length * np.arange(count)
        return np.stack([np.full(count, segment), start, np.full(count, length)], axis=1)

    def append_vector(self, vector: Tensor) -> Vector:
        """Write a vector without a header; return a handle that can open it."""
        vector = vector.contiguous()
        _, offset, _ = self._write([raw_bytes(vector)])
        path = segment_path(self.home, self.own)
        return Vector(str(path), offset, vector.nbytes, str(vector.dtype).removeprefix("torch."))

    def _write(self, parts: Sequence[bytes | memoryview]) -> tuple[int, int, int]:
        if self.file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file = files.open_file(self.path(self.own), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            self.end = os.fstat(self.file).st_size
        offsets, length = aligned_offsets([len(p) for p in parts])
        start = self.end
        for part, offset, next_ in zip(parts, offsets, [*offsets[1:], length]):
            pieces = [part, b"\0" * (next_ - offset - len(part))]
            written = os.writev(self.file, pieces)
            while written < next_ - offset:  # a short write: disk nearly full, or more than 2 GiB at once
                rest = memoryview(b"".join(pieces))[written:]
                written += os.write(self.file, rest)
        self.end += length
        return self.own, start, length

    # -- reading -------------------------------------------------------------------------------------------------
    def read(self, location: Sequence[int], plain: bool = False) -> Tree:
        """Return a copy of the tree at a location; `None` for NO_RECORD. `plain` as in `unflatten`."""
        segment, offset, length = (int(x) for x in location)
        if segment < 0:
            return None
        memory = torch.empty(length, dtype=torch.uint8, device="cpu")
        raw_bytes(memory)[:] = self.window(segment, offset, length)
        record = memory.numpy()
        _, size = _FRONT.unpack_from(record.data)
        end = _FRONT.size + size
        return _tree(bytes(record[_FRONT.size : end]).decode(), memory, end, plain)

    def read_rows(self, locations: np.ndarray) -> Tree:
        """Return copies of the trees at locations (n, 3), stacked; `None` if their structures differ."""
        lengths, starts = locations[:, 2], locations[:, 1]
        if (lengths != lengths[0]).any() or (starts % ALIGNMENT).any():
            return None
        shape = len(locations), int(lengths[0]) // ALIGNMENT, ALIGNMENT
        block = torch.empty(shape, dtype=torch.uint8).numpy()  # aligned for the kernels
        self._fill(block, locations)
        rows = block.reshape(len(locations), -1)
        damaged = _checksums(rows) != rows[:, :_SUMMED].copy().view("<u8")[:, 0]
        if damaged.any():
            raise self._damage(*map(int, locations[np.argmax(damaged), :2]))
        _, size = _FRONT.unpack_from(rows[0].data)
        end = _FRONT.size + size
        skeleton = bytes(rows[0, _FRONT.size : end]).decode()
        if (
            rows[:, _SUMMED:end] != rows[0, _SUMMED:end]
        ).any() or '"array"' in skeleton:  # numpy arrays cannot be stacked
            return None
        return _tree(skeleton, torch.from_numpy(rows), end)

    def _fill(self, block: np.ndarray, locations: np.ndarray) -> None:
        """Copy records of one length at locations (n, 3) to rows of a block, uint8 (n, units, ALIGNMENT)."""
        for segment in np.unique(locations[:, 0]):
            members = np.flatnonzero(locations[:, 0] == segment)
            starts, length = locations[members, 1], int(locations[0, 2])
            whole = np.frombuffer(self._map(int(segment), int(starts.max() + length)), np.uint8)
            units = starts[:, None] // ALIGNMENT + np.arange(block.shape[1])
            block[members] = whole[: len(whole) // ALIGNMENT * ALIGNMENT].reshape(-1, ALIGNMENT)[units]

    def read_vector(self, vector: Vector) -> Tensor:
        """Return a copy of a vector that some worker of the run has written."""
        return vector.read()

    def check(self, locations: np.ndarray) -> None:
        """Check that the files of the records at locations (n, 3) exist and are long enough.

        Raises:
            Damaged: one does not.
        """
        for segment in np.unique(locations[:, 0]):
            path, mine = self.path(int(segment)), locations[locations[:, 0] == segment]
            size = path.stat().st_size if path.is_file() else None
            end = int((mine[:, 1] + mine[:, 2]).max())
            if size is None or size < end:
                raise Damaged(
                    f"{path} {'is missing' if size is None else f'has {size} bytes, but {end} were committed'}"
                )

    def window(self, segment: int, offset: int, length: int) -> memoryview:
        """Return the bytes of a record, without a copy.

        Raises:
            Damaged: the record is lost, or its bytes have changed.
        """
        found = self._bytes(segment, offset, length)
        if len(found) < length:
            raise Damaged(f"{self.path(segment)} ends before byte {offset + length}, which was committed")
        if xxhash.xxh3_64_intdigest(found[_SUMMED:]) != _FRONT.unpack_from(found)[0]:
            raise self._damage(segment, offset)
        return found

    def _bytes(self, segment: int, offset: int, length: int) -> memoryview:
        """Return the bytes of a record without a look at them; fewer if the file ends before."""
        return memoryview(self._map(segment, offset + length))[offset : offset + length]

    def _damage(self, segment: int, offset: int) -> Damaged:
        return Damaged(f"{self.path(segment)} is damaged: the checksum of the record at byte {offset} differs")

    def _map(self, segment: int, end: int) -> mmap.mmap:
        found = self.maps.get(segment)
        if found is None or len(found) < end:
            try:
                with open(self.path(segment), "rb") as file:
                    found = self.maps[segment] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (FileNotFoundError, ValueError) as error:  # an empty file cannot be mapped
                raise Damaged(
                    f"{self.path(segment)} is {'empty' if isinstance(error, ValueError) else 'missing'}"
                ) from error
        return found

    def close(self) -> None:
        """Close the file and forget the maps."""
        if self.file is not None:
            os.close(self.file)
            self.file = None
        self.maps.clear()


def segment_path(folder: Path, segment: int) -> Path:
    """Return the file of a segment in a folder."""
    return folder / f"{segment:012d}.seg"


def _pad(length: int) -> bytes:
    """Return the zeros after `length` bytes, up to the next boundary."""
    return b"\0" * (-length % ALIGNMENT)


def _checksums(records: np.ndarray) -> np.ndarray:
    """Return the checksum of each record, uint8 (n, length) -> uint64 (n,)."""
    return np.array([xxhash.xxh3_64_intdigest(record[_SUMMED:]) for record in records], np.uint64)


def _tree(skeleton: str, memory: Tensor, start: int, plain: bool = False) -> Tree:
    """Rebuild a tree whose buffers follow the header in `memory` (..., bytes)."""
    specs = [(dtype, shape, math.prod(shape) * dtype.itemsize) for dtype, shape in shapes(skeleton)]
    offsets, _ = aligned_offsets([start, *(size for _, _, size in specs)])
    batch = memory.shape[:-1]
    return unflatten(
        skeleton,
        [
            memory[..., at : at + size].contiguous().view(dtype).view((*batch, *shape))
            for (dtype, shape, size), at in zip(specs, offsets[1:])
        ],
        plain,
    )
