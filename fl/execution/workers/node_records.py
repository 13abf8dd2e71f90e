"""What a worker on another node keeps of the run's stores: the node's own files, and what the driver sends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fl.execution.stored_records import STATES
from fl.execution.workers.byte_stream import Sender
from fl.execution.workers.folders import PrivateFolder, disk_folder
from fl.storage.node_segments import NOTHING, Arrived, NodeSegments, Parcel

PIECE = 16 << 20  # bytes of stored records that travel at once to a node
LITTLE = 64 << 10  # bytes of new records that travel with the worker's answer


class NewRecords(NamedTuple):
    """Bytes [start, end) that a worker has appended to a segment of a store. If `data` is None they are asked for."""

    store: int
    segment: int
    start: int
    end: int
    data: bytes | None

    @property
    def place(self) -> tuple[int, int, int, int]:
        """Store, segment, start, end."""
        return self[:4]


class NodeRecords:
    """The stores of a worker on another node than the driver's.

    Args:
        name: of the run's private folder on this node.
        homes: the driver's folders, one for each store.
    """

    def __init__(self, name: str, homes: Sequence[Path]):
        self.folder = PrivateFolder(disk_folder(), name)
        self.stores = [
            NodeSegments(number, self.folder.path / f"store-{number}", home) for number, home in enumerate(homes)
        ]

    def open(self, home: Path) -> NodeSegments:
        """Return the store that takes the place of a folder of the driver."""
        return next(store for store in self.stores if store.home == home)

    def arrive(self, parcel: Parcel | None) -> None:
        """Take the records that the next tasks read; None for none."""
        import ray

        arrived = NOTHING if parcel is None else Arrived(parcel, ray.get)
        for store in self.stores:
            store.arrived = arrived

    def new(self) -> list[NewRecords]:
        """Return what the worker has written since the last call; with its bytes if they are few."""
        self.arrive(None)
        spans = [(store, *store.unsent()) for store in self.stores]
        little = sum(end - start for _, _, start, end in spans) <= LITTLE
        return [
            NewRecords(store.store, segment, start, end, store.piece(segment, start, end) if little else None)
            for store, segment, start, end in spans
            if end > start
        ]

    def compact(self, segment: int, locations: np.ndarray) -> None:
        """Follow a compaction of the states by the driver, see `NodeSegments.compact`."""
        self.stores[STATES].compact(segment, locations)

    def connect(self, host: str, port: int, key: bytes) -> None:
        """Connect to the driver, for `send`."""
        self.sender = Sender(host, port, key)

    def send(self, places: Sequence[tuple[int, int, int, int]]) -> None:
        """Send bytes of this node's segments to the driver, (store, segment, start, end) each."""
        for store, segment, start, end in places:
            self.sender.send(self.stores[store].path(segment), start, end)

    def leave(self) -> None:
        """Hang up and delete the files; other workers on this node have ended their run, too."""
        self.sender.close()
        self.folder.remove()
