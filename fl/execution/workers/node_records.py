"""What a worker on another node keeps of the run's stores: what the node has written, and what the driver sends."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fl.execution.stored_records import STATES
from fl.execution.workers.byte_stream import ByteStream, FilePart, check_files
from fl.execution.workers.folders import PrivateFolder, disk_folder
from fl.storage import files
from fl.storage.node_segments import NodeSegments

RECEIVED = ".received"  # "7.seg.received" marks that no worker of this node has written "7.seg"


class NewRecords(NamedTuple):
    """Bytes [start, end) that a worker has appended to a segment of a store."""

    store: int
    segment: int
    start: int
    end: int


class NodeRecords:
    """The stores of a worker on another node than the driver's.

    Args:
        name: of the run's private folder on this node.
        homes: the driver's folders, one for each store.
    """

    def __init__(self, name: str, homes: Sequence[Path]):
        self.folder = PrivateFolder(disk_folder(), name)
        self.stores = [NodeSegments(self.folder.path / f"store-{number}", home) for number, home in enumerate(homes)]

    def open(self, home: Path) -> NodeSegments:
        """Return the store that takes the place of a folder of the driver."""
        return next(store for store in self.stores if store.home == home)

    def arrive(self, places: np.ndarray, stream: ByteStream) -> None:
        """Take the records that the tasks of the next dispatch read, for all workers of this node.

        Args:
            places: where they belong, int64 (n, 4): store, file, start, end.
            stream: their bytes come from it.
        """
        self._drop_received()
        for (store, file), rows in itertools.groupby(places.tolist(), lambda row: tuple(row[:2])):
            path = self.stores[store].path(file)
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.with_name(path.name + RECEIVED).touch()  # before the file, which another worker may have to delete
            opened = files.open_file(path, os.O_CREAT | os.O_WRONLY)
            try:
                for _, _, start, end in rows:
                    stream.receive_to_file(opened, start, end)
            finally:
                os.close(opened)

    def _drop_received(self) -> None:
        """Delete the files that only hold what has come for the dispatch before, to this worker or to one that died."""
        for mark in (mark for store in self.stores for mark in store.folder.glob(f"*{RECEIVED}")):
            files.remove(mark.with_suffix(""))
            files.remove(mark)

    def new(self) -> tuple[list[NewRecords], list[FilePart]]:
        """Return what the worker has written since the last call, and where it lies."""
        spans = [NewRecords(number, *store.unsent()) for number, store in enumerate(self.stores)]
        records = [span for span in spans if span.end > span.start]
        parts = [FilePart(self.stores[new.store].path(new.segment), new.start, new.end) for new in records]
        check_files(parts)
        return records, parts

    def compact(self, segment: int, locations: np.ndarray) -> None:
        """Follow a compaction of the states by the driver, see `NodeSegments.compact`."""
        self.stores[STATES].compact(segment, locations)

    def leave(self) -> None:
        """Delete the files; other workers on this node have ended their run, too."""
        self.folder.remove()
