"""The states of clients between rounds: an index client -> (segment, offset, length), committed with each round.

    room(clients) -> free space ~~> workers write new states ~~> stage(clients, locations) -> commit() -> sweep(...)

The driver `stage`s the locations and `commit`s them with the model, so a killed run continues with the states of its
last committed round. A client without a state costs one row of the index, which is created with the first state.

The space of a state that was replaced is free when no commit that may be resumed has it, and no pinned checkpoint. New
states of the same length go there; without free space they are appended to the worker's segment. So the folder holds
the current states, those that commits need, and the free space of about one round. Space may be lost: that of small
states, of states of other lengths, of failed clients, of writers on other nodes, and of the process before a resumed
one. If more than the current states take is lost or free, the current states are copied to a new segment.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from fl.storage import files
from fl.storage.growing import Damaged, GrowingFile
from fl.storage.records import FILES, NO_RECORD, file_of, location_keys
from fl.storage.segments import Segments, states_of

_MAX_WRITERS = 1 << 20
_USES = 1 << 20  # numbers of uses of the same space
COMPACT_ABOVE = 64 << 20  # never compact or wait for the disk for fewer unused bytes than this
REUSE_FROM = 1 << 16  # bytes of a record; smaller ones are quicker written together, at the end of a segment


def writer_of(segments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (generations, writers) of segments, each (n,). The generation of reused space is that of no segment.

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
        self.total = self.live = 0  # bytes in all segments of the generation, and of the current states
        self.kept: frozenset[int] = frozenset()  # writers on other nodes, which keep what they have written
        self.moved: dict[int, np.ndarray] = {}  # such a writer -> old locations (n, 3) of what its segment begins with
        self.pinned: dict[str, np.ndarray] = {}  # name -> keys of the records of a pinned checkpoint
        self._forget_space()

    def _forget_space(self) -> None:
        """Begin without free space and without replaced records."""
        self.use = 0  # how often space has become free; it marks the records that are written there
        self.length = 0  # of the last record
        self.free: dict[int, np.ndarray] = {}  # length -> locations (n, 3), in the order of files
        self.lent: list[np.ndarray] = []  # free space that was given to dispatches since the last sweep
        self.reused: list[np.ndarray] = []  # records that were staged in such space since then
        self.replaced: list[np.ndarray] = []  # records that others have replaced since then
        self.dead: list[tuple[int, np.ndarray]] = []  # the first commit without some records, and their locations
        self.held = np.empty((0, 3), np.int64)  # records that only pinned checkpoints have
        self.lengths: dict[int, int] = {}  # number of a commit -> length of the index log
        self.durable = 0  # length of the index log that has reached the disk, with its records

    # -- the round ------------------------------------------------------------------------------------------------
    def locations(self, clients: np.ndarray) -> np.ndarray:
        """Return the location (n, 3) of each client's state, staged states included; NO_RECORD if it has none."""
        if self.index is None:
            return np.tile(np.array(NO_RECORD), (len(clients), 1))
        return self.index.take(clients, 0)

    def stage(self, clients: np.ndarray, locations: np.ndarray) -> None:
        """Record new states, visible at once and durable after the next `commit`. NO_RECORD rows are skipped."""
        wrote = np.flatnonzero(locations[:, 0] >= 0)
        if not len(wrote):
            return
        clients, locations = clients[wrote], locations.take(wrote, 0)
        index = self._index()
        before = index.take(clients, 0)
        self.live += int(locations[:, 2].sum() - before[:, 2].sum())
        _as_items(index)[clients] = _as_items(locations)
        self.staged.append((clients, locations))
        self.replaced.append(before.take(np.flatnonzero(before[:, 0] >= 0), 0))
        appended, self.length = locations[:, 0] < FILES, int(locations[-1, 2])
        self.reused.append(locations[~appended])
        self.total += int(locations[:, 2] @ appended)

    def room(self, clients: np.ndarray) -> np.ndarray | None:
        """Return free space for a new state of each client, (n, 3), NO_RECORD where there is none; None: for nobody.

        It has the length of the last state. Until the next `sweep` it is given to nobody else.
        """
        free = self.free.get(self.length)
        if free is None or not len(free):
            return None
        some = free[: len(clients)].copy()
        some[:, 0] = (1 + self.use % _USES) * FILES + file_of(some[:, 0])
        self.free[self.length] = free[len(some) :]
        self.lent.append(some)
        return np.concatenate([some, np.tile(np.array(NO_RECORD), (len(clients) - len(some), 1))])

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
        return {
            "generation": self.generation,
            "log": self.log and self.log.mark,
            "total": self.total,
            "use": self.use,
            "durable": self.durable,
        }

    def restore(self, record: dict[str, Any]) -> None:
        """Return to the states of a commit record.

        Raises:
            Damaged: the index is damaged, a segment is lost or too short, or a record of the last commits did not reach
                the disk before a power cut.
        """
        self.close()
        self._forget_space()
        self.generation, self.total, self.use = record["generation"], record["total"], record["use"] + 1
        self.staged, self.index, self.live, self.unswept = [], None, 0, {self.generation: 0}
        self.moved = {}
        self.pinned = {}
        for path in self.folder.glob("*.npy"):
            with contextlib.suppress(Damaged):  # such a checkpoint has no states any more
                self.pinned[path.stem] = _keys(_pinned(path)[:, 1:])
        if record["log"]:
            self.log = GrowingFile(self._log_path(), record["log"])
            rows = np.fromfile(self._log_path(), np.int64, self.log.length // 8).reshape(-1, 4)
            index = self._index()
            index[rows[:, 0]] = rows[:, 1:]  # later rows win
            self.live = int(index[:, 2].sum())
            recent = np.unique(rows[record["durable"] // rows.strides[0] :, 0])
            try:
                segments, known = Segments(self.folder), np.flatnonzero(index[:, 0] >= 0)
                with states_of(known, index[known]):
                    segments.check(index[known])
                    segments.check_sums(index[recent])
            except Damaged:
                self.close()
                raise

    def pin(self, name: str) -> str:
        """Protect the present states, for the checkpoint `name`: they stay until others are pinned under this name.

        Returns:
            a hash of where they lie, for `restore_pinned`; "" if there are none.
        """
        if self.index is None:
            return ""
        clients = np.flatnonzero(self.index[:, 0] >= 0)
        rows, found = io.BytesIO(), np.column_stack([clients, self.index[clients]])  # rows (client, location)
        np.save(rows, found)
        files.write_file(self.folder / f"{name}.npy", rows.getvalue())
        self.pinned[name] = _keys(found[:, 1:])
        self._look_again()
        return _hash(found)

    def unpin(self, name: str) -> None:
        """Give up the states of the checkpoint `name`."""
        files.remove(self.folder / f"{name}.npy")
        if self.pinned.pop(name, None) is not None:
            self._look_again()

    def _look_again(self) -> None:
        """Free what only a former checkpoint had, when the present one has reached the disk."""
        self.replaced.append(self.held)
        self.held = self.held[:0]

    def restore_pinned(self, name: str, pinned: str) -> None:
        """Return to the states that `pin` has protected. For readers only.

        Args:
            name: of the checkpoint.
            pinned: what `pin` returned.

        Raises:
            Damaged: a segment is lost or too short, or the states belong to another checkpoint of this name.
        """
        self.close()
        self.staged, self.index = [], None
        if pinned:
            path = self.folder / f"{name}.npy"
            rows = _pinned(path)
            if _hash(rows) != pinned:
                raise Damaged(f"{path} holds the states of another checkpoint")
            with states_of(rows[:, 0], rows[:, 1:]):
                Segments(self.folder).check(rows[:, 1:])
            self._index()[rows[:, 0]] = rows[:, 1:]

    def detach(self) -> None:
        """Copy the present states to new files. Those before may be links to files of a run that goes on.

        Raises:
            Damaged: a record is lost, or another one has taken its place.
        """
        if self.index is not None:
            used = [int(path.stem.removeprefix("index-")) for path in self.folder.glob("index-*.bin")]
            self.generation = max([self.generation, *used])
            self._compact()

    def sweep(self, number: int, needed: int) -> None:
        """Free the space of records that no commit and no pinned state uses. Call it after each commit.

        Args:
            number: number of the commit that was written.
            needed: number of the oldest commit that may still be resumed.
        """
        self._free_space(number, needed)
        self.unswept = {generation: first or number for generation, first in self.unswept.items()}
        # states may be compacted again before a commit with them has reached the disk
        oldest = max((generation for generation, first in self.unswept.items() if first <= needed), default=0)
        if not oldest:
            return
        used = {int(s) for s in np.unique(file_of(self._index()[:, 0]))}
        for path in self.folder.glob("*.npy"):
            with contextlib.suppress(Damaged):
                used |= {int(s) for s in np.unique(file_of(_pinned(path)[:, 1]))}
        for path in self.folder.glob("*.seg"):
            if int(path.stem) < oldest * _MAX_WRITERS and int(path.stem) not in used:
                files.remove(path)
        for path in self.folder.glob("index-*.bin"):
            if int(path.stem.removeprefix("index-")) < oldest:
                files.remove(path)
        self.unswept = {generation: first for generation, first in self.unswept.items() if generation > oldest}

    def _free_space(self, number: int, needed: int) -> None:
        """Free the space of records that no commit from `needed` on and no pinned checkpoint has."""
        self.dead.append((number, _joined(self.replaced)))
        ready = [records for first, records in self.dead if first <= needed]
        self.dead = [(first, records) for first, records in self.dead if first > needed and len(records)]
        lent, reused = _joined(self.lent), _joined(self.reused)
        unused = lent[~_among(lent, _keys(reused))]
        self.replaced, self.lent, self.reused, self.use = [], [], [], self.use + 1
        free = _joined([*ready, unused])
        for keys in self.pinned.values():
            pinned = _among(free, keys)
            self.held, free = _joined([self.held, free[pinned]]), free[~pinned]
        free = free[free[:, 2] >= REUSE_FROM]
        for length in np.unique(free[:, 2]).tolist():
            same = _joined([self.free.get(length, free[:0]), free[free[:, 2] == length]])
            self.free[length] = same[np.lexsort((same[:, 1], file_of(same[:, 0])))]
        self.lengths[number] = 0 if self.log is None else self.log.length
        self.durable = self.lengths.get(needed, self.durable)
        self.lengths = {commit: length for commit, length in self.lengths.items() if commit >= needed}

    @property
    def crowded(self) -> bool:
        """Whether the next commit has to reach the disk at once, so that older ones give up their space.

        Otherwise the folder could hold more than twice the current states and the states of a round.
        """
        latest, dead = (
            _bytes([records[records[:, 2] >= REUSE_FROM] for records in arrays])
            for arrays in (self.replaced, [records for _, records in self.dead])
        )
        return dead + 2 * latest > max(self.live, COMPACT_ABOVE)

    def growing(self) -> list[Path]:
        """Return the files that commits count on."""
        return [*self.folder.glob("*.seg"), *self.folder.glob("*.bin"), *self.folder.glob("*.npy")]

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
        needed = _bytes([*self.replaced, *(records for _, records in self.dead), self.held])
        return self.total - self.live - needed > max(self.live, COMPACT_ABOVE)

    def _compact(self) -> None:
        """Copy the current states to new segments, in client order, with a new generation of the index.

        A writer on another node gets a segment with the states that it has written, and `moved` tells it from where to
        copy them; all other states go to one segment.
        """
        index = self._index()
        clients = np.flatnonzero(index[:, 0] >= 0)
        old = index[clients]
        generations, writers = writer_of(old[:, 0])
        followed = list(self.kept) if not self.moved else []  # else nodes have yet to follow the compaction before
        stay = np.isin(writers, followed) & (generations == self.generation)
        self.close()
        self.generation += 1
        self.unswept[self.generation] = 0
        writers[~stay] = self.new_writer()
        self.moved = {}
        use = self.use
        self._forget_space()
        with contextlib.closing(Segments(self.folder)) as store:
            for writer in np.unique(writers).tolist():
                mine = writers == writer
                store.write_to(self.segment(writer))
                with states_of(clients[mine], old[mine]):
                    index[clients[mine]] = store.copy(old[mine])
                if writer in followed:
                    self.moved[writer] = old[mine]
        self.total, self.use = self.live, use
        self._append(np.column_stack([clients, index[clients]]))


def _pinned(path: Path) -> np.ndarray:
    """Return the rows (client, location) of a pinned checkpoint, (n, 4).

    Raises:
        Damaged: the file is cut short, or has other content.
    """
    try:
        found: np.ndarray = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise Damaged(f"{path} is damaged: {error}") from error
    return found


def _hash(rows: np.ndarray) -> str:
    """Return a hash of rows of a pinned checkpoint."""
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(rows, np.int64).data)


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return locations (n, 3) after one another."""
    return np.concatenate([np.empty((0, 3), np.int64), *arrays])


def _as_items(locations: np.ndarray) -> np.ndarray:
    """Return locations (n, 3) as one item each, (n,), a view if they are contiguous. Numpy scatters items faster."""
    return np.ascontiguousarray(locations, np.int64).view("V24")[:, 0]


def _bytes(arrays: Sequence[np.ndarray]) -> int:
    """Return the bytes of the records at locations (n, 3)."""
    return sum(int(array[:, 2].sum()) for array in arrays)


def _keys(locations: np.ndarray) -> np.ndarray:
    """Return the keys of locations (n, 3), ascending."""
    return np.sort(location_keys(locations))


def _among(locations: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return whether locations (n, 3) have one of the keys, which ascend, (n,)."""
    mine = location_keys(locations)
    at = np.searchsorted(keys, mine)
    return np.append(keys, np.uint64(0))[at] == mine if len(keys) else np.zeros(len(mine), bool)
