"""The states of clients between rounds: an index client -> (segment, offset, length), committed with the round.

Workers append new states to segments of their own; the driver `stage`s the locations and `commit`s them together with the
model, so that a killed run finds every state as the last committed round left it. Idle clients cost nothing but their row of
the index, which is made when the first state is. When more than half of the segments' bytes are dead, live states are copied
to a fresh segment.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from fl.storage.segments import NOWHERE, Segments

_WRITERS = 1 << 20
COMPACT_ABOVE = 64 << 20  # bytes of dead states that are tolerated at least


class ClientStates:
    """The committed and staged states of `population` clients, in `folder`."""

    def __init__(self, folder: Path, population: int):
        self.folder, self.population = folder, population
        self.index: np.ndarray | None = None
        self.staged: list[tuple[np.ndarray, np.ndarray]] = []
        self.generation = 0
        self.length = 0  # bytes of the index log that are committed
        self.writers = 0
        self.total = self.live = 0  # bytes in segments, and of the states that count

    # -- the round ------------------------------------------------------------------------------------------------
    def locations(self, clients: np.ndarray) -> np.ndarray:
        """(n, 3): where each client's state is, staged ones included; NOWHERE if it has none."""
        if self.index is None:
            return np.tile(np.array(NOWHERE), (len(clients), 1))
        return self.index[clients]

    def stage(self, clients: np.ndarray, locations: np.ndarray) -> None:
        """New states, visible at once, lasting from the next `commit`. Rows of NOWHERE are clients that wrote none."""
        wrote = locations[:, 0] >= 0
        if not wrote.any():
            return
        clients, locations = clients[wrote], locations[wrote]
        if self.index is None:
            self.index = np.tile(np.array(NOWHERE), (self.population, 1))
        self.live += int(locations[:, 2].sum() - self.index[clients, 2].sum())
        self.index[clients] = locations
        self.staged.append((clients, locations))
        self.total += int(locations[:, 2].sum())

    def new_writer(self) -> int:
        """A number for a writer that nobody has used in this folder; with the generation it names its segment."""
        used = [int(p.stem) % _WRITERS + 1 for p in self.folder.glob("*.seg")]
        self.writers = max([self.writers, *used]) + 1
        return self.writers - 1

    def segment(self, writer: int) -> int:
        """Where a writer writes now: a compaction starts a new segment for everyone."""
        return self.generation * _WRITERS + writer

    # -- commits --------------------------------------------------------------------------------------------------
    def commit(self) -> dict[str, Any]:
        """Make staged states last; what to write into the round's commit record."""
        if self.staged:
            if self._worth_compacting():
                self._compact()
            else:
                rows = np.concatenate([np.column_stack(pair) for pair in self.staged])
                self._append(rows)
            self.staged = []
        return {"generation": self.generation, "length": self.length, "total": self.total}

    def restore(self, record: dict[str, Any]) -> None:
        """Back to a commit record."""
        self.generation, self.length, self.total = record["generation"], record["length"], record["total"]
        self.staged, self.index, self.live = [], None, 0
        if self.length:
            with open(self._log(), "r+b") as file:
                file.truncate(self.length)
            rows = np.fromfile(self._log(), np.int64).reshape(-1, 4)
            self.index = np.tile(np.array(NOWHERE), (self.population, 1))
            self.index[rows[:, 0]] = rows[:, 1:]  # later rows win
            self.live = int(self.index[:, 2].sum())

    def pin(self, name: str) -> None:
        """Keep the present states for the checkpoint `name` through later compactions: rows (client, location)."""
        if self.index is not None:
            held = np.flatnonzero(self.index[:, 0] >= 0)
            part = self.folder / f"{name}.part.npy"
            np.save(part, np.column_stack([held, self.index[held]]))
            os.replace(part, self.folder / f"{name}.npy")

    def sweep(self) -> None:
        """After the commit record is on disk: delete segments that nothing committed or pinned refers to."""
        if self.generation and (self.folder / f"index-{self.generation - 1}.bin").exists():
            kept = {int(s) for s in np.unique(self.index[:, 0])}
            for pinned in self.folder.glob("*.npy"):
                kept |= {int(s) for s in np.unique(np.load(pinned)[:, 1])}
            for path in self.folder.glob("*.seg"):
                if int(path.stem) < self.segment(0) and int(path.stem) not in kept:
                    path.unlink()
            (self.folder / f"index-{self.generation - 1}.bin").unlink()

    def _log(self) -> Path:
        return self.folder / f"index-{self.generation}.bin"

    def _append(self, rows: np.ndarray) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self._log(), "ab") as file:
            file.truncate(self.length)
            file.seek(self.length)
            file.write(rows.astype(np.int64).tobytes())
            self.length = file.tell()

    def _worth_compacting(self) -> bool:
        return self.total - self.live > max(self.live, COMPACT_ABOVE)

    def _compact(self) -> None:
        """Copy live states into one new segment, in client order, under a new generation of the index."""
        held = np.flatnonzero(self.index[:, 0] >= 0)
        self.generation += 1
        source, fresh, offset = Segments(self.folder), self.segment(self.new_writer()), 0
        with open(source.path(fresh), "wb") as out:
            for client in held:
                segment, start, length = (int(x) for x in self.index[client])
                out.write(source.window(segment, start, length))
                self.index[client] = (fresh, offset, length)
                offset += length
        source.close()
        self.length, self.total = 0, offset
        self._append(np.column_stack([held, self.index[held]]))
