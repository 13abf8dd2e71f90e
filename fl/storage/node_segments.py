"""Segments on another node than the driver's, which shares no file with it.

    driver: record -> Parcel ~~> NodeSegments reads it             a record that no worker on the node has written
    NodeSegments writes a record -> `unsent` ~~> driver's file     at the same segment and offset as on the node

So a location means the same record on every node, and the driver's files hold all records. A record that a worker on
the node has written is read from the node's own files; all others come in parcels with the tasks that read them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl.storage import files
from fl.storage.segments import Segments, Vector
from fl.tensors.params import ALIGNMENT


@dataclass(frozen=True)
class Parcel:
    """Records that the driver sends to a node, in a few pieces.

    Attributes:
        places: where each record lies, int64 (n, 5): store, segment, offset, piece, position in the piece in bytes.
        pieces: references to arrays of bytes.
    """

    places: np.ndarray
    pieces: list[Any]


class Arrived:
    """The records of a parcel on a node. One piece is in use at a time, because tasks read records in their order.

    Args:
        parcel: the records.
        fetch: reference -> uint8 array (bytes,).
    """

    def __init__(self, parcel: Parcel, fetch: Callable[[Any], np.ndarray]):
        self.pieces, self.fetch = parcel.pieces, fetch
        self.at = {tuple(key): (piece, at) for *key, piece, at in parcel.places.tolist()}
        self.present: tuple[int, np.ndarray] = (-1, np.empty(0, np.uint8))

    def find(self, store: int, segment: int, offset: int, length: int) -> np.ndarray | None:
        """Return the bytes of a record, (length,); None if the parcel does not hold it."""
        found = self.at.get((store, segment, offset))
        if found is None:
            return None
        piece, at = found
        if self.present[0] != piece:
            self.present = piece, self.fetch(self.pieces[piece])
        return self.present[1][at : at + length]


NOTHING = Arrived(Parcel(np.empty((0, 5), np.int64), []), lambda reference: reference)


class NodeSegments(Segments):
    """Segments in a folder of this node.

    Args:
        store: number of the store in the job's `stores`.
        folder: folder of this node, which its workers share.
        home: the driver's folder. No file in it is touched.
    """

    def __init__(self, store: int, folder: Path, home: Path):
        super().__init__(folder)
        self.store, self.home = store, home
        self.arrived = NOTHING
        self.sent = 0  # the driver has the bytes of segment `own` up to here

    def write_to(self, segment: int) -> None:
        """Write to `segment` from now on. The one before is not read again: the driver has copied its records."""
        if segment != self.own and self.own >= 0:
            files.remove(self.path(self.own))
        if segment != self.own:
            self.sent = 0
        super().write_to(segment)

    def compact(self, segment: int, locations: np.ndarray) -> None:
        """Write to `segment` from now on, which begins with own records at `locations` (n, 3), as in the driver's file.

        The segment before is deleted.
        """
        before = self.own
        super().write_to(segment)
        self.copy(locations)
        self.sent = self.end
        files.remove(self.path(before))

    def empty(self) -> None:
        """Restart segment `own`."""
        super().empty()
        self.sent = 0

    def unsent(self) -> tuple[int, int, int]:
        """Return (segment, start, end) of what the driver has not had yet, and take it as sent."""
        start = self.sent
        if self.file is not None:
            self.sent = self.end
        return self.own, start, self.sent

    def piece(self, segment: int, start: int, end: int) -> bytes:
        """Return bytes of a segment in this node's folder."""
        file = os.open(self.path(segment), os.O_RDONLY | os.O_NOFOLLOW)
        try:
            found = os.pread(file, end - start, start)
        finally:
            os.close(file)
        if len(found) < end - start:
            raise self._damage(segment, start)
        return found

    def read_vector(self, vector: Vector) -> Tensor:
        """Return a copy of a vector that some worker of the run has written."""
        segment, offset, length = vector.location
        found = self._bytes(segment, offset, length)
        out = torch.empty(length, dtype=torch.uint8)
        out.numpy()[:] = found
        return out.view(getattr(torch, vector.dtype))

    def _bytes(self, segment: int, offset: int, length: int) -> memoryview:
        found = self.arrived.find(self.store, segment, offset, length)
        return super()._bytes(segment, offset, length) if found is None else found.data

    def _fill(self, block: np.ndarray, locations: np.ndarray) -> None:
        here = np.ones(len(locations), bool)
        for i, (segment, offset, length) in enumerate(locations.tolist()):
            found = self.arrived.find(self.store, segment, offset, length)
            if found is not None:
                block[i], here[i] = found.reshape(-1, ALIGNMENT), False
        if here.any():
            own = np.empty((int(here.sum()), *block.shape[1:]), np.uint8)
            super()._fill(own, locations[here])
            block[here] = own
