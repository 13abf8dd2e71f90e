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
from fl.storage.segments import NO_RECORD, Segments

_MAX_WRITERS = 1 << 20
COMPACT_ABOVE = 64 << 20  # never compact for fewer unused bytes than this


class ClientStates:
    """The committed and staged states of `population` clients in `folder`."""

    def __init__(self, folder: Path, population: int):
        self.folder, self.population = folder, population
        self.index: np.ndarray | None = None
        self.staged: list[tuple[np.ndarray, np.ndarray]] = []
        self.generation = 0
        self.length = 0  # committed bytes of the index log
        self.writers = 0
        self.total = self.live = 0  # bytes in all segments, and of the current states

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
                rows = np.concatenate([np.column_stack(pair) for pair in self.staged])
                self._append(rows)
            self.staged = []
        return {"generation": self.generation, "length": self.length, "total": self.total}

    def restore(self, record: dict[str, Any]) -> None:
        """Return to the states of a commit record."""
        self.generation, self.length, self.total = record["generation"], record["length"], record["total"]
        self.staged, self.index, self.live = [], None, 0
        if self.length:
            files.open_at(self._log(), self.length).close()
            rows = np.fromfile(self._log(), np.int64).reshape(-1, 4)
            index = self._index()
            index[rows[:, 0]] = rows[:, 1:]  # later rows win
            self.live = int(index[:, 2].sum())

    def pin(self, name: str) -> None:
        """Protect the present states, for the checkpoint `name`, from later compactions."""
        if self.index is not None:
            clients = np.flatnonzero(self.index[:, 0] >= 0)
            rows = io.BytesIO()
            np.save(rows, np.column_stack([clients, self.index[clients]]))  # rows (client, location)
            files.write_file(self.folder / f"{name}.npy", rows.getvalue())

    def sweep(self) -> None:
        """Delete segments that no committed or pinned state uses. Call it after the commit record is on disk."""
        if self.generation and (self.folder / f"index-{self.generation - 1}.bin").exists():
            used = {int(s) for s in np.unique(self._index()[:, 0])}
            for pinned in self.folder.glob("*.npy"):
                used |= {int(s) for s in np.unique(np.load(pinned, allow_pickle=False)[:, 1])}
            for path in self.folder.glob("*.seg"):
                if int(path.stem) < self.segment(0) and int(path.stem) not in used:
                    files.remove(path)
            files.remove(self.folder / f"index-{self.generation - 1}.bin")

    def _index(self) -> np.ndarray:
        """Return the index (population, 3), created when it is first needed."""
        if self.index is None:
            self.index = np.tile(np.array(NO_RECORD), (self.population, 1))
        return self.index

    def _log(self) -> Path:
        return self.folder / f"index-{self.generation}.bin"

    def _append(self, rows: np.ndarray) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with files.open_at(self._log(), self.length) as file:
            view = memoryview(rows.astype(np.int64).tobytes())
            while view:  # an unbuffered write may be partial
                view = view[file.write(view) :]
            self.length = file.tell()

    def _worth_compacting(self) -> bool:
        return self.total - self.live > max(self.live, COMPACT_ABOVE)

    def _compact(self) -> None:
        """Copy the current states to one new segment, in client order, with a new generation of the index."""
        index = self._index()
        clients = np.flatnonzero(index[:, 0] >= 0)
        self.generation += 1
        source, fresh, offset = Segments(self.folder), self.segment(self.new_writer()), 0
        new = files.open_file(source.path(fresh), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with os.fdopen(new, "wb") as out:
            for client in clients:
                segment, start, length = (int(x) for x in index[client])
                out.write(source.window(segment, start, length))
                index[client] = (fresh, offset, length)
                offset += length
        source.close()
        self.length, self.total = 0, offset
        self._append(np.column_stack([clients, index[clients]]))
