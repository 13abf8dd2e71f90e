"""Segments: records written by workers, read by their location (segment, offset, length).

    record   | checksum | skeleton length | skeleton text | pad to 64 | buffers of the tree, on 64-byte boundaries |

Each writer appends to a segment of its own. The owner of the locations decides which records are current, and may give
the space of others to new records of the same length (clients.py). Such a record has another segment number in the same
file, see `file_of`, so a location never means two records. The checksum is the XXH3 (64 bits) of what follows it, with
the location as its seed; every read compares it. So a location whose space was given away is noticed. A record is a
tree (`fl.tensors.serialise.flatten`): states of clients are text and numbers, never pickle.
"""

from __future__ import annotations

import functools
import math
import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from fl.storage import files
from fl.storage.growing import Damaged
from fl.tensors.buffers import pooled_buffer
from fl.tensors.params import ALIGNMENT
from fl.tensors.serialise import aligned_offsets, flatten, raw_bytes, shapes, unflatten
from fl.tensors.trees import Tree, row

NO_RECORD = (-1, 0, 0)  # the location of no record
FILES = 1 << 42  # numbers of files; segments that differ by a multiple lie in one file
_FRONT = struct.Struct("<QQ")  # checksum, length of the skeleton
_SUMMED = 8  # the checksum is that of the bytes from here on
_LARGE = 1 << 18  # bytes of records that are read and written one by one
_BUFFERS = 500  # most tensors of such a record: one call takes 1,024 pieces, and each tensor may need a pad
_AT_ONCE = 1 << 20  # bytes of other records that are read or written at once; they stay in the cache
_SMALL = 1 << 14  # bytes of records that are copied from a map of the file, because a call for each would cost more


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
        if files.read_at(file, raw_bytes(out), self.offset + start * dtype.itemsize) < out.nbytes:
            raise Damaged(f"{self.path} ends before byte {self.offset + self.length}")
        return out


@dataclass(frozen=True)
class _Form:
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
        return self.length == length > _LARGE and len(self.specs) <= _BUFFERS

    @functools.cached_property
    def specs(self) -> list[tuple[torch.dtype, tuple[int, ...], int]]:
        """The dtype, the shape and the bytes of each tensor."""
        return _specs(self.skeleton)


class Segments:
    """The segments in one folder. New records go to segment `own` (see `write_to`), which the first one creates.

    Attributes:
        folder: where the files lie.
        home: the folder in which the driver finds them; another one on other nodes (node_segments.py).
    """

    def __init__(self, folder: Path | str):
        self.folder, self.own = Path(folder), -1
        self.home = self.folder
        self.file: int | None = None
        self.end = 0
        self.restarted = -1  # the segment that `empty` has restarted, if nothing was written since
        self.form: _Form | None = None  # of the last records that were read together

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
        if self.restarted != self.own:
            self.close()
            files.remove(self.path(self.own))
            self.restarted = self.own

    # -- writing -------------------------------------------------------------------------------------------------
    def append(self, tree: Tree, room: np.ndarray | None = None) -> tuple[int, int, int]:
        """Write a tree; return its location. `room`: free space, a location (3,); it is used if it has the length."""
        skeleton, tensors = flatten(tree)
        buffers = [raw_bytes(tensor.contiguous()) for tensor in tensors]
        where = self._write_rows(skeleton, [np.frombuffer(b, np.uint8)[None] for b in buffers], 1, room)[0]
        return int(where[0]), int(where[1]), int(where[2])

    def append_rows(self, tree: Tree, count: int, room: np.ndarray | None = None) -> np.ndarray:
        """Write the `count` trees stacked in `tree` as one record each; return their locations (count, 3).

        Args:
            tree: the trees.
            count: number of trees.
            room: free space, locations (count, 3), NO_RECORD for none. It is used where it has the record's length.
        """
        rows = [t.reshape(count, -1).contiguous().view(torch.uint8).numpy() for t in flatten(tree)[1]]
        return self._write_rows(flatten(row(tree, 0))[0], rows, count, room)

    def append_vector(self, vector: Tensor) -> Vector:
        """Write a vector without a header; return a handle that can open it."""
        vector = vector.contiguous()
        offset = self._extend(-(-vector.nbytes // ALIGNMENT) * ALIGNMENT)
        assert self.file is not None
        files.write_at(self.file, raw_bytes(vector), offset)
        if vector.nbytes % ALIGNMENT:
            os.ftruncate(self.file, self.end)  # the pad
        path = segment_path(self.home, self.own)
        return Vector(str(path), offset, vector.nbytes, str(vector.dtype).removeprefix("torch."))

    def _write_rows(self, skeleton: str, rows: Sequence[np.ndarray], count: int, room: np.ndarray | None) -> np.ndarray:
        """Write `count` records of one skeleton, whose buffers are rows, uint8 (count, size); return the locations."""
        text = skeleton.encode()
        header = np.frombuffer(_FRONT.pack(0, len(text)) + text, np.uint8)
        sizes = [len(header), *(each.shape[1] for each in rows)]
        offsets, length = aligned_offsets(sizes)
        where = self._places(count, length, room)
        if length > _LARGE and len(rows) <= _BUFFERS:
            self._write_large(bytes(header), rows, where)
            return where
        at_once = min(count, max(1, _AT_ONCE // length))
        block = _buffer(at_once, length).numpy()
        ends = [*offsets[1:], length]
        for offset, size, end in zip(offsets, sizes, ends):
            block[:, offset + size : end] = 0
        block[:, : len(header)] = header
        with _Files(self) as opened:
            for start in range(0, count, at_once):
                part = block[: min(at_once, count - start)]
                places = where[start : start + len(part)]
                for each, offset, size in zip(rows, offsets[1:], sizes[1:]):
                    part[:, offset : offset + size] = each[start : start + len(part)]
                _write_sealed(part, places, opened)
        return where

    def _write_large(self, header: bytes, rows: Sequence[np.ndarray], where: np.ndarray) -> None:
        """Write one large record after another to `where`, (n, 3), from where the rows lie."""
        front = bytearray(header + _pad(len(header)))
        pads = [_pad(each.shape[1]) for each in rows]
        with _Files(self) as opened:
            for i, ((segment, offset, length), seed) in enumerate(zip(where.tolist(), location_keys(where).tolist())):
                pieces: list[Any] = [front]
                for each, pad in zip(rows, pads):
                    pieces += [each[i].data, pad] if pad else [each[i].data]
                found = xxhash.xxh3_64(memoryview(front)[_SUMMED:], seed)
                for piece in pieces[1:]:
                    found.update(piece)
                _FRONT.pack_into(front, 0, found.intdigest(), len(header) - _FRONT.size)
                descriptor = opened.to_write(segment % FILES)
                written = os.pwritev(descriptor, pieces, offset)
                if written < length:
                    files.write_at(descriptor, memoryview(b"".join(pieces))[written:], offset + written)

    def copy(self, locations: np.ndarray) -> np.ndarray:
        """Copy the records at locations (n, 3) to the end of segment `own`; return their locations.

        Raises:
            Damaged: a record is lost, or its bytes have changed.
        """
        where, lengths = np.empty((len(locations), 3), np.int64), locations[:, 2]
        edges = [0, *(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(locations)]
        with _Files(self) as opened:
            for first, last in zip(edges, edges[1:]):
                at_once = max(1, _AT_ONCE // int(lengths[first]))
                for start in range(first, last, at_once):
                    mine = slice(start, min(start + at_once, last))
                    where[mine] = self._places(mine.stop - start, int(lengths[first]), None)
                    _write_sealed(self.records(locations[mine]).numpy(), where[mine], opened)
        return where

    def _places(self, count: int, length: int, room: np.ndarray | None) -> np.ndarray:
        """Return where `count` records of a length go, (count, 3): to free space, or to the end of segment `own`."""
        where = np.empty((count, 3), np.int64)
        where[:, 2] = length
        fits = np.zeros(count, bool)
        if room is not None and self.folder == self.home:  # the free space is in the driver's files
            room = room.reshape(-1, 3)
            fits = room[:, 2] == length
            where[fits] = room[fits]
        new = count - int(fits.sum())
        if new:
            where[~fits, 0] = self.own
            where[~fits, 1] = self._extend(new * length) + length * np.arange(new)
        return where

    def _extend(self, length: int) -> int:
        """Take `length` bytes at the end of segment `own`; return where they begin."""
        if self.file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file, self.restarted = files.open_file(self.path(self.own), os.O_CREAT | os.O_WRONLY), -1
            self.end = -(-os.fstat(self.file).st_size // ALIGNMENT) * ALIGNMENT
        start, self.end = self.end, self.end + length
        return start

    # -- reading -------------------------------------------------------------------------------------------------
    def read(self, location: Sequence[int], plain: bool = False) -> Tree:
        """Return a copy of the tree at a location; `None` for NO_RECORD. `plain` as in `unflatten`."""
        if location[0] < 0:
            return None
        record = self.records(np.array([location], np.int64))[0]
        _, size = _FRONT.unpack_from(record.numpy().data)
        end = _FRONT.size + size
        return _tree(bytes(record.numpy()[_FRONT.size : end]).decode(), record, end, plain)

    def read_rows(self, locations: np.ndarray) -> Tree:
        """Return copies of the trees at locations (n, 3), stacked; `None` if their structures differ."""
        if (locations[:, 2] != locations[0, 2]).any():
            return None
        if self.form is not None and self.form.is_large(int(locations[0, 2])):
            found = self._read_large(locations, self.form)
            if found is not None:
                return found
        records = self.records(locations)
        rows = records.numpy()
        _, size = _FRONT.unpack_from(rows[0].data)
        end = _FRONT.size + size
        if (rows[:, _SUMMED:end] != rows[0, _SUMMED:end]).any():
            return None
        skeleton = bytes(rows[0, _FRONT.size : end]).decode()
        if '"array"' in skeleton:  # numpy arrays cannot be stacked
            return None
        self.form = _Form(bytes(rows[0, _SUMMED:end]), skeleton, rows.shape[1])
        return _tree(skeleton, records, end)

    def _read_large(self, locations: np.ndarray, form: _Form) -> Tree:
        """Read large records at locations (n, 3), each buffer to its place in the stack; `None` if the form differs."""
        count, buffers = len(locations), []
        offsets, _ = aligned_offsets([_SUMMED + len(form.header), *(size for _, _, size in form.specs)])
        for start, end in zip(offsets[1:], [*offsets[2:], form.length]):
            buffers.append(_buffer(count, end - start))
        front, rows = bytearray(offsets[1]), [buffer.numpy() for buffer in buffers]
        summed = memoryview(front)[_SUMMED:]
        with _Files(self) as opened:
            for i, ((segment, offset, _), seed) in enumerate(
                zip(locations.tolist(), location_keys(locations).tolist())
            ):
                pieces = [each[i].data for each in rows]
                if os.preadv(opened.to_read(segment % FILES), [front, *pieces], offset) < form.length:
                    return None
                if summed[: len(form.header)] != form.header:
                    return None
                found = xxhash.xxh3_64(summed, seed)
                for piece in pieces:
                    found.update(piece)
                if found.intdigest() != _FRONT.unpack_from(front)[0]:
                    raise self._damage(segment, offset)
        return unflatten(form.skeleton, [_shaped(buffer, *spec) for buffer, spec in zip(buffers, form.specs)])

    def records(self, locations: np.ndarray) -> Tensor:
        """Return the bytes of records of one length at locations (n, 3), uint8 (n, length).

        Raises:
            Damaged: a record is lost, or its bytes have changed.
        """
        count, length = len(locations), int(locations[0, 2])
        records = _buffer(count, length)
        block = records.numpy().reshape(count, length // ALIGNMENT, ALIGNMENT)
        at_once = max(1, _AT_ONCE // length)
        for start in range(0, count, at_once):
            part, mine = block[start : start + at_once], locations[start : start + at_once]
            self._fill(part, mine)
            rows = part.reshape(len(part), length)
            damaged = _checksums(rows, mine) != rows[:, :_SUMMED].copy().view("<u8")[:, 0]
            if damaged.any():
                raise self._damage(*map(int, mine[np.argmax(damaged), :2]))
        return records

    def _fill(self, block: np.ndarray, locations: np.ndarray) -> None:
        """Copy records of one length at locations (n, 3) to rows of a block, uint8 (n, units, ALIGNMENT)."""
        owners, length = file_of(locations[:, 0]), int(locations[0, 2])
        with _Files(self) as opened:
            if length > _SMALL:
                for first, last, file, offset in _runs(locations):
                    self._read(opened.to_read(file), block[first:last].reshape(-1).data, file, offset)
                return
            for file in np.unique(owners).tolist():
                members = np.flatnonzero(owners == file)
                starts, descriptor = locations[members, 1], opened.to_read(file)
                end = int(starts.max()) + length
                if os.fstat(descriptor).st_size < end:
                    raise Damaged(f"{self.path(file)} ends before byte {end}, which was committed")
                with mmap.mmap(descriptor, end, access=mmap.ACCESS_READ) as mapped:
                    whole = np.frombuffer(mapped, np.uint8).reshape(-1, ALIGNMENT)
                    block[members] = whole[starts[:, None] // ALIGNMENT + np.arange(block.shape[1])]
                    del whole  # a map in use cannot be closed

    def read_vector(self, vector: Vector) -> Tensor:
        """Return a copy of a vector that some worker of the run has written."""
        return vector.read()

    def check(self, locations: np.ndarray) -> None:
        """Check that the files of the records at locations (n, 3) exist and are long enough.

        Raises:
            Damaged: one does not.
        """
        owners = file_of(locations[:, 0])
        for file in np.unique(owners):
            path, mine = self.path(int(file)), locations[owners == file]
            size = path.stat().st_size if path.is_file() else None
            end = int((mine[:, 1] + mine[:, 2]).max())
            if size is None or size < end:
                raise Damaged(
                    f"{path} {'is missing' if size is None else f'has {size} bytes, but {end} were committed'}"
                )

    def check_sums(self, locations: np.ndarray) -> None:
        """Compare the checksums of the records at locations (n, 3).

        Raises:
            Damaged: a record is lost, or its bytes have changed.
        """
        for length in np.unique(locations[:, 2]):
            mine, at_once = locations[locations[:, 2] == length], max(1, _AT_ONCE // int(length))
            for start in range(0, len(mine), at_once):
                self.records(mine[start : start + at_once])

    def window(self, segment: int, offset: int, length: int) -> memoryview:
        """Return the bytes of a record.

        Raises:
            Damaged: the record is lost, or its bytes have changed.
        """
        return self.records(np.array([(segment, offset, length)], np.int64))[0].numpy().data

    def _read(self, descriptor: int, into: memoryview, segment: int, offset: int) -> None:
        """Read bytes from `offset` on."""
        if files.read_at(descriptor, into, offset) < len(into):
            raise Damaged(f"{self.path(segment)} ends before byte {offset + len(into)}, which was committed")

    def _damage(self, segment: int, offset: int) -> Damaged:
        return Damaged(f"{self.path(segment)} is damaged: the checksum of the record at byte {offset} differs")

    def close(self) -> None:
        """Close the file."""
        if self.file is not None:
            os.close(self.file)
            self.file = None


class _Files:
    """Files of segments that are open for one call: a file that was kept open would take space after its deletion."""

    def __init__(self, segments: Segments):
        self.segments, self.opened = segments, dict[int, int]()

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self.opened.values():
            os.close(descriptor)

    def to_read(self, file: int) -> int:
        """Return a descriptor of the file with a number."""
        if file not in self.opened:
            path = self.segments.path(file)
            try:
                self.opened[file] = os.open(path, os.O_RDONLY)  # an evaluation links to the files of another run
            except FileNotFoundError as error:
                raise Damaged(f"{path} is missing") from error
        return self.opened[file]

    def to_write(self, file: int) -> int:
        """Return a descriptor of the file with a number, which exists."""
        if file == self.segments.own and self.segments.file is not None:
            return self.segments.file
        if file not in self.opened:
            self.opened[file] = files.open_file(self.segments.path(file), os.O_WRONLY)
        return self.opened[file]


def file_of(segments: np.ndarray) -> np.ndarray:
    """Return the numbers of the files that segments lie in, (n,).

    >>> [int(file) for file in file_of(np.array([7, 5 * FILES + 7]))]
    [7, 7]
    """
    return segments % FILES


def segment_path(folder: Path, segment: int) -> Path:
    """Return the file of a segment in a folder."""
    return folder / f"{segment % FILES:012d}.seg"


def _runs(locations: np.ndarray) -> Iterator[tuple[int, int, int, int]]:
    """Yield (first, last, file, offset) of the records first..last-1 at locations (n, 3) that follow one another."""
    owners, starts, length = file_of(locations[:, 0]), locations[:, 1], int(locations[0, 2])
    breaks = np.flatnonzero((np.diff(owners) != 0) | (np.diff(starts) != length)) + 1
    for first, last in zip([0, *breaks.tolist()], [*breaks.tolist(), len(locations)]):
        yield first, last, int(owners[first]), int(starts[first])


def _write_sealed(records: np.ndarray, locations: np.ndarray, opened: _Files) -> None:
    """Write records, uint8 (n, length), to locations (n, 3), with the checksums that belong there."""
    records[:, :_SUMMED] = _checksums(records, locations).astype("<u8")[:, None].view(np.uint8)
    for first, last, file, offset in _runs(locations):
        files.write_at(opened.to_write(file), records[first:last].reshape(-1).data, offset)


def location_keys(locations: np.ndarray) -> np.ndarray:
    """Return a number for each location (n, 3), uint64 (n,): the seed of its checksum."""
    return locations[:, 0].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + locations[:, 1].astype(np.uint64)


def _pad(length: int) -> bytes:
    """Return the zeros after `length` bytes, up to the next boundary."""
    return bytes(-length % ALIGNMENT)


def _checksums(records: np.ndarray, locations: np.ndarray) -> np.ndarray:
    """Return the checksum of each record, uint8 (n, length), at locations (n, 3): uint64 (n,)."""
    data, digest, length = records.reshape(-1).data, xxhash.xxh3_64_intdigest, records.shape[1]
    places = zip(range(0, len(data), length), location_keys(locations).tolist())
    return np.array([digest(data[at + _SUMMED : at + length], seed) for at, seed in places], np.uint64)


def _buffer(count: int, length: int) -> Tensor:
    """Return uninitialised memory, uint8 (count, length). Its size is rounded up, so that few buffers serve all."""
    elements = 1 << (count * length // 4 - 1).bit_length()
    return pooled_buffer(elements).view(torch.uint8)[: count * length].view(count, length)


def _specs(skeleton: str) -> list[tuple[torch.dtype, tuple[int, ...], int]]:
    """Return the dtype, the shape and the bytes of each tensor of a skeleton."""
    return [(dtype, shape, math.prod(shape) * dtype.itemsize) for dtype, shape in shapes(skeleton)]


def _shaped(memory: Tensor, dtype: torch.dtype, shape: tuple[int, ...], size: int) -> Tensor:
    """Return the first `size` bytes of each row of `memory` (..., bytes) as a tensor (..., *shape)."""
    return memory[..., :size].contiguous().view(dtype).view((*memory.shape[:-1], *shape))


def _tree(skeleton: str, memory: Tensor, start: int, plain: bool = False) -> Tree:
    """Rebuild a tree whose buffers follow the header in `memory` (..., bytes)."""
    specs = _specs(skeleton)
    offsets, _ = aligned_offsets([start, *(size for _, _, size in specs)])
    return unflatten(skeleton, [_shaped(memory[..., at:], *spec) for spec, at in zip(specs, offsets[1:])], plain)
