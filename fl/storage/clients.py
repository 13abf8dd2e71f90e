"""The states of clients between rounds: an index client -> (segment, offset, length), committed with each round.

Workers append new states to their own segments. The driver `stage`s the locations and `commit`s them with the model,
so a killed run continues with the states of its last committed round. A client without a state costs one row of the
index, which is created with the first state. If more than half of the segments' bytes are unused, the current states
are copied to a new segment.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from fl.storage import files
from fl.storage.growing import Damaged, GrowingFile
from fl.storage.segments import NO_RECORD, Segments

_MAX_WRITERS = 1 << 20
COMPACT_ABOVE = 64 << 20  # never compact for fewer unused bytes than this


def writer_of(segments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (generations, writers) of segments, each (n,).

    >>> [int(x) for x in writer_of(np.array(3 * (1 << 20) + 7))]
    [3, 7]
    """
    return segments // _MAX_WRITERS, segments % _MAX_WRITERS


class ClientStates:
    """The committed and staged states of `population` clients in `folder`."""

    def __init__(self, folder: Path, population: int):
        self.folder, self.population = folder, population
        self.index: np.ndarray | None = None
        self.staged: list[tuple[np.ndarray, np.ndarray]] = []
        self.generation = 0
        self.log: GrowingFile | None = None  # the index log
        self.unswept: dict[int, int] = {}  # generation -> number of the first commit with it, 0 before that
        self.writers = 0
        self.total = self.live = 0  # bytes in all segments, and of the current states
        self.kept: frozenset[int] = frozenset()  # writers on other nodes, which keep what they have written
        self.moved: dict[int, np.ndarray] = {}  # such a writer -> old locations (n, 3) of what its segment begins with

    # -- the round ------------------------------------------------------------------------------------------------
    def locations(self, clients: np.ndarray) -> np.ndarray:
        """Return the location (n, 3) of each client's state, staged states included; NO_RECORD if it has none."""
        if self.index is None:
            return np.tile(np.array(NO_RECORD), (len(clients), 1))
        return self.index[clients]

    def stage(self, clients: np.ndarray, locations: np.ndarray) -> None:
        """Record new states, visible at once and durable after the next `commit`. NO_RECORD rows are skipped."""
        wrote = locations[:, 0] >= 0
        if not wrote.any():
            return
        clients, locations = clients[wrote], locations[wrote]
        index = self._index()
        self.live += int(locations[:, 2].sum() - index[clients, 2].sum())
        index[clients] = locations
        self.staged.append((clients, locations))
        self.total += int(locations[:, 2].sum())

    def new_writer(self) -> int:
        """Return an unused number for a writer; with the generation it names the writer's segment."""
        used = [int(p.stem) % _MAX_WRITERS + 1 for p in self.folder.glob("*.seg")]
        self.writers = max([self.writers, *used]) + 1
        return self.writers - 1

    def segment(self, writer: int) -> int:
        """Return the present segment of a writer. Each compaction starts new segments."""
        return self.generation * _MAX_WRITERS + writer

    # -- commits --------------------------------------------------------------------------------------------------
    def commit(self) -> dict[str, Any]:
        """Write staged states to the index log; return the entry for the commit record of the round."""
        if self.staged:
            if self._worth_compacting():
                self._compact()
            else:
                self._append(np.concatenate([np.column_stack(pair) for pair in self.staged]))
            self.staged = []
        return {"generation": self.generation, "log": self.log and self.log.mark, "total": self.total}

    def restore(self, record: dict[str, Any]) -> None:
        """Return to the states of a commit record.

        Raises:
            Damaged: the index is damaged, or a segment is lost or too short.
        """
        self.close()
        self.generation, self.total = record["generation"], record["total"]
        self.staged, self.index, self.live, self.unswept = [], None, 0, {self.generation: 0}
        self.moved = {}
        if record["log"]:
            self.log = GrowingFile(self._log_path(), record["log"])
            rows = np.fromfile(self._log_path(), np.int64, self.log.length // 8).reshape(-1, 4)
            index = self._index()
            index[rows[:, 0]] = rows[:, 1:]  # later rows win
            self.live = int(index[:, 2].sum())
            try:
                Segments(self.folder).check(index[index[:, 0] >= 0])
            except Damaged:
                self.close()
                raise

    def pin(self, name: str) -> None:
        """Protect the present states, for the checkpoint `name`, from later compactions."""
        if self.index is not None:
            clients = np.flatnonzero(self.index[:, 0] >= 0)
            rows = io.BytesIO()
            np.save(rows, np.column_stack([clients, self.index[clients]]))  # rows (client, location)
            files.write_file(self.folder / f"{name}.npy", rows.getvalue())

    def restore_pinned(self, name: str) -> None:
        """Return to the states that `pin` has protected; clients have none if there were none. For readers only.

        Raises:
            Damaged: a segment is lost or too short.
        """
        self.close()
        self.staged, self.index = [], None
        path = self.folder / f"{name}.npy"
        if path.is_file():
            rows = np.load(path, allow_pickle=False)
            Segments(self.folder).check(rows[:, 1:])
            self._index()[rows[:, 0]] = rows[:, 1:]

    def sweep(self, number: int, needed: int) -> None:
        """Delete segments that no commit and no pinned state uses. Call it after each commit.

        Args:
            number: number of the commit that was written.
            needed: number of the oldest commit that may still be resumed.
        """
        self.unswept = {generation: first or number for generation, first in self.unswept.items()}
        # states may be compacted again before a commit with them has reached the disk
        oldest = max((generation for generation, first in self.unswept.items() if first <= needed), default=0)
        if not oldest:
            return
        used = {int(s) for s in np.unique(self._index()[:, 0])}
        for pinned in self.folder.glob("*.npy"):
            used |= {int(s) for s in np.unique(np.load(pinned, allow_pickle=False)[:, 1])}
        for path in self.folder.glob("*.seg"):
            if int(path.stem) < oldest * _MAX_WRITERS and int(path.stem) not in used:
                files.remove(path)
        for path in self.folder.glob("index-*.bin"):
            if int(path.stem.removeprefix("index-")) < oldest:
                files.remove(path)
        self.unswept = {generation: first for generation, first in self.unswept.items() if generation > oldest}

    def growing(self) -> list[Path]:
        """Return the files that commits count on."""
        return [*self.folder.glob("*.seg"), *self.folder.glob("*.bin")]

    def close(self) -> None:
        """Close the index log."""
        if self.log is not None:
            self.log.close()
            self.log = None

    def _index(self) -> np.ndarray:
        """Return the index (population, 3), created when it is first needed."""
        if self.index is None:
            self.index = np.tile(np.array(NO_RECORD), (self.population, 1))
        return self.index

    def _log_path(self) -> Path:
        return self.folder / f"index-{self.generation}.bin"

    def _append(self, rows: np.ndarray) -> None:
        if self.log is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.log = GrowingFile(self._log_path())
        self.log.append(memoryview(rows.astype(np.int64).tobytes()))

    def _worth_compacting(self) -> bool:
        return self.total - self.live > max(self.live, COMPACT_ABOVE)

    def _compact(self) -> None:
        """Copy the current states to new segments, in client order, with a new generation of the index.

        A writer on another node gets a segment with the states that it has written, and `moved` tells it from where to
        copy them; all other states go to one segment.
        """
        index = self._index()
        clients = np.flatnonzero(index[:, 0] >= 0)
        old, self.moved = index[clients], {}
        self.close()
        self.generation += 1
        self.unswept[self.generation] = 0
        writers = writer_of(old[:, 0])[1]
        writers[~np.isin(writers, list(self.kept))] = self.new_writer()
        source = Segments(self.folder)
        for writer in np.unique(writers).tolist():
            mine = np.flatnonzero(writers == writer)
            fresh, offset = self.segment(writer), 0
            new = files.open_file(source.path(fresh), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            with os.fdopen(new, "wb") as out:
                for client, (segment, start, length) in zip(clients[mine].tolist(), old[mine].tolist()):
                    out.write(source.window(segment, start, length))
                    index[client] = (fresh, offset, length)
                    offset += length
            if writer in self.kept:
                self.moved[writer] = old[mine]
        source.close()
        self.total = self.live
        self._append(np.column_stack([clients, index[clients]]))
