"""Segments on another node than the driver's, which shares no file with it.

    driver's file ~~> the node's file of this name, at the same place    a record that no worker on the node has written
    NodeSegments writes a record -> `unsent` ~~> driver's file           at the same segment and offset as on the node

So a location means the same record on every node, and the driver's files hold all records. A node's file has gaps where
the node has neither written nor received a record. The driver knows which records a node lacks, and sends them with the
tasks that read them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from fl.storage import files
from fl.storage.segments import Segments
from fl.storage.vector import Vector


class NodeSegments(Segments):
    """Segments in a folder of this node.

    Args:
        folder: folder of this node, which its workers share.
        home: the driver's folder. No file in it is touched.
    """

    def __init__(self, folder: Path, home: Path):
        super().__init__(folder)
        self.home = home
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

    def read_vector(self, vector: Vector) -> Tensor:
        """Return a copy of a vector that some worker of the run has written."""
        return replace(vector, path=str(self.path(vector.location[0]))).read()
