"""What a worker on another node keeps of the run's stores: the node's own files, and what the driver sends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fl.execution.workers.folders import PrivateFolder, disk_folder
from fl.storage.node_segments import NOTHING, Arrived, NodeSegments, Parcel

PIECE = 16 << 20  # bytes that travel at once


class NewRecords(NamedTuple):
    """Bytes that a worker has appended to a segment. `data`, (end - start,), is None if the driver has to ask."""

    store: int
    segment: int
    start: int
    end: int
    data: np.ndarray | None


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
        little = sum(end - start for _, _, start, end in spans) <= PIECE
        return [
            NewRecords(store.store, segment, start, end, store.piece(segment, start, end) if little else None)
            for store, segment, start, end in spans
            if end > start
        ]

    def piece(self, store: int, segment: int, start: int, end: int) -> Any:
        """Return bytes of a segment, (end - start,)."""
        return self.stores[store].piece(segment, start, end)

    def leave(self) -> None:
        """Delete the files; other workers on this node have ended their run, too."""
        self.folder.remove()
