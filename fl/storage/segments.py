"""Segments: records written by workers, read by their location (segment, offset, length).

records.py describes a record. Each writer appends to a segment of its own. The owner of the locations decides which
records are current, and may give the space of others to new records of the same length (clients.py). Such a record has
another segment number in the same file, see `file_of`, so a location never means two records. The checksum is the XXH3
(64 bits) of what follows it, with the location as its seed; every read compares it. So a location whose space was given
away is noticed. A record is a tree (`fl.tensors.serialise.flatten`): states of clients are text and numbers, never
pickle.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from fl.storage import files
from fl.storage.growing import Damaged
from fl.storage.records import (
    BUFFERS,
    FILES,
    FRONT,
    LARGE,
    SUMMED,
    Form,
    checksums,
    file_of,
    form_of,
    location_keys,
    new_rows,
    pad_of,
    runs,
    segment_path,
    shaped,
    stored_checksums,
    tree_of,
)
from fl.storage.vector import Vector
from fl.tensors.params import ALIGNMENT
from fl.tensors.serialise import aligned_offsets, flatten, raw_bytes, unflatten
from fl.tensors.trees import Tree

_AT_ONCE = 1 << 20  # bytes of smaller records that are read or written at once; they stay in the cache


class DamagedRecords(Damaged):
    """Records that are lost, or whose bytes have changed.

    Attributes:
        locations: where they are, (n, 3).
    """

    def __init__(self, message: str, locations: np.ndarray | None = None):  # pickle gives the message only
        super().__init__(message)
        self.locations = np.empty((0, 3), np.int64) if locations is None else locations


@contextlib.contextmanager
def states_of(clients: np.ndarray, locations: np.ndarray) -> Iterator[None]:
    """Name the clients in an error of the block, if their states are what is damaged.

    Args:
        clients: ids, (n,).
        locations: where their states are, (n, 3).

    Raises:
        Damaged: the error, with the clients' ids before its text.
    """
    try:
        yield
    except DamagedRecords as damage:
        mine = clients[np.isin(location_keys(locations), location_keys(damage.locations))]
        if not len(mine):
            raise
        who = f"state of client {mine[0]}" if len(mine) == 1 else f"states of {len(mine)} clients, such as {mine[0]}"
        raise Damaged(f"{who}: {damage}") from damage


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
        self.form: Form | None = None  # of the last records that were read together

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
        skeleton, tensors = flatten(tree, stacked=True)
        rows = [tensor.reshape(count, -1).contiguous().view(torch.uint8).numpy() for tensor in tensors]
        return self._write_rows(skeleton, rows, count, room)

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
        header = np.frombuffer(FRONT.pack(0, len(text)) + text, np.uint8)
        sizes = [len(header), *(each.shape[1] for each in rows)]
        offsets, length = aligned_offsets(sizes)
        where = self._places(count, length, room)
        if length > LARGE and len(rows) <= BUFFERS:
            self._write_large(bytes(header), rows, where)
            return where
        at_once = min(count, max(1, _AT_ONCE // length))
        block = new_rows(at_once, length).numpy()
        ends = [*offsets[1:], length]
        for offset, size, end in zip(offsets, sizes, ends):
            block[:, offset + size : end] = 0
        block[:, : len(header)] = header
        with _Files(self) as opened:
            for first, last, file, begin in runs(where):
                descriptor = opened.to_write(file)
                for start in range(first, last, at_once):
                    part = block[: min(at_once, last - start)]
                    for each, offset, size in zip(rows, offsets[1:], sizes[1:]):
                        part[:, offset : offset + size] = each[start : start + len(part)]
                    stored_checksums(part)[:] = checksums(part, where[start : start + len(part)])
                    files.write_at(descriptor, part.reshape(-1).data, begin + (start - first) * length)
        return where

    def _write_large(self, header: bytes, rows: Sequence[np.ndarray], where: np.ndarray) -> None:
        """Write one large record after another to `where`, (n, 3), from where the rows lie."""
        front = bytearray(header + pad_of(len(header)))
        pads = [pad_of(each.shape[1]) for each in rows]
        with _Files(self) as opened:
            for i, ((segment, offset, length), seed) in enumerate(zip(where.tolist(), location_keys(where).tolist())):
                pieces: list[Any] = [front]
                for each, pad in zip(rows, pads):
                    pieces += [each[i].data, pad] if pad else [each[i].data]
                found = xxhash.xxh3_64(memoryview(front)[SUMMED:], seed)
                for piece in pieces[1:]:
                    found.update(piece)
                FRONT.pack_into(front, 0, found.intdigest(), len(header) - FRONT.size)
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
        for first, last in zip(edges, edges[1:]):
            at_once = max(1, _AT_ONCE // int(lengths[first]))
            for start in range(first, last, at_once):
                mine = slice(start, min(start + at_once, last))
                records = self.records(locations[mine]).numpy()
                where[mine] = self._places(len(records), int(lengths[first]), None)
                stored_checksums(records)[:] = checksums(records, where[mine])
                assert self.file is not None
                files.write_at(self.file, records.reshape(-1).data, int(where[start, 1]))
        return where

    def _places(self, count: int, length: int, room: np.ndarray | None) -> np.ndarray:
        """Return where `count` records of a length go, (count, 3): to free space, or to the end of segment `own`."""
        if room is not None and self.folder == self.home:  # the free space is in the driver's files
            where = room.reshape(-1, 3).copy()
            new: np.ndarray | slice = np.flatnonzero(where[:, 2] != length)
        else:
            where, new = np.empty((count, 3), np.int64), slice(None)
        if added := len(where[new]):
            where[new, 0], where[new, 2] = self.own, length
            start = self._extend(added * length)
            where[new, 1] = np.arange(start, self.end, length)
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
        return tree_of(form_of(record.numpy()), record, plain)

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
        form = form_of(rows[0], self.form)
        headers = rows[:, SUMMED : SUMMED + len(form.header)]
        if (headers != headers[0]).any() or '"array"' in form.skeleton:  # numpy arrays cannot be stacked
            return None
        self.form = form
        return tree_of(form, records)

    def _read_large(self, locations: np.ndarray, form: Form) -> Tree:
        """Read large records at locations (n, 3), each buffer to its place in the stack; `None` if the form differs."""
        count, buffers = len(locations), []
        for start, end in zip(form.offsets, [*form.offsets[1:], form.length]):
            buffers.append(new_rows(count, end - start))
        front, rows = bytearray(form.offsets[0]), [buffer.numpy() for buffer in buffers]
        summed = memoryview(front)[SUMMED:]
        with _Files(self) as opened:
            for i, ((segment, offset, _), seed) in enumerate(
                zip(locations.tolist(), location_keys(locations).tolist())
            ):
                pieces = [each[i].data for each in rows]
                if os.preadv(opened.to_read(segment % FILES, locations), [front, *pieces], offset) < form.length:
                    return None
                if summed[: len(form.header)] != form.header:
                    return None
                found = xxhash.xxh3_64(summed, seed)
                for piece in pieces:
                    found.update(piece)
                if found.intdigest() != FRONT.unpack_from(front)[0]:
                    raise self._damage(locations[i])
        return unflatten(form.skeleton, [shaped(buffer, *spec) for buffer, spec in zip(buffers, form.specs)])

    def records(self, locations: np.ndarray) -> Tensor:
        """Return the bytes of records of one length at locations (n, 3), uint8 (n, length).

        Raises:
            Damaged: a record is lost, or its bytes have changed.
        """
        count, length = len(locations), int(locations[0, 2])
        records, at_once = new_rows(count, length), max(1, _AT_ONCE // length)
        with _Files(self) as opened:
            for start in range(0, count, at_once):
                rows, mine = records.numpy()[start : start + at_once], locations[start : start + at_once]
                flat = rows.reshape(-1).data
                for first, last, file, offset in runs(mine):
                    into = flat[first * length : last * length]
                    if (got := files.read_at(opened.to_read(file, mine), into, offset)) < len(into):
                        end, lost = offset + len(into), mine[first + got // length : last]
                        raise DamagedRecords(f"{self.path(file)} ends before byte {end}, which was committed", lost)
                damaged = checksums(rows, mine) != stored_checksums(rows)
                if damaged.any():
                    raise self._damage(mine[np.argmax(damaged)])
        return records

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
                text = f"{path} {'is missing' if size is None else f'has {size} bytes, but {end} were committed'}"
                raise DamagedRecords(text, mine[mine[:, 1] + mine[:, 2] > (size or 0)])

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

    def _damage(self, location: np.ndarray) -> DamagedRecords:
        segment, offset, _ = map(int, location)
        text = f"{self.path(segment)} is damaged: the checksum of the record at byte {offset} differs"
        return DamagedRecords(text, location[None])

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

    def to_read(self, file: int, locations: np.ndarray) -> int:
        """Return a descriptor of the file with a number. Locations (n, 3) are for the error if there is no file."""
        if file not in self.opened:
            path = self.segments.path(file)
            try:
                self.opened[file] = os.open(path, os.O_RDONLY)  # an evaluation links to the files of another run
            except FileNotFoundError as error:
                raise DamagedRecords(f"{path} is missing", locations[file_of(locations[:, 0]) == file]) from error
        return self.opened[file]

    def to_write(self, file: int) -> int:
        """Return a descriptor of the file with a number, which exists."""
        if file == self.segments.own and self.segments.file is not None:
            return self.segments.file
        if file not in self.opened:
            self.opened[file] = files.open_file(self.segments.path(file), os.O_WRONLY)
        return self.opened[file]
