"""What travels between the driver and workers on other nodes, which share no file with it.

    job, dispatch      driver -> object store -> each node once
    stored records     driver -> object store -> the node whose tasks read them    unless its workers have written them
    new records        worker's file -> driver's file, at the same offset          before the next dispatch

Nothing here runs if all workers are on the driver's node.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fl.execution.workers.channel import Member, RemoteChannel
from fl.execution.workers.executor import Dispatch, Job
from fl.execution.workers.node_records import PIECE, NewRecords
from fl.execution.workers.shared import Handle, Region
from fl.execution.workers.task_queue import split
from fl.storage import files
from fl.storage.clients import ClientStates, writer_of
from fl.storage.growing import Damaged
from fl.storage.node_segments import Parcel
from fl.storage.segments import file_of, segment_path
from fl.tensors.serialise import aligned_offsets
from fl.tracking import spans

Runs = list[tuple[int, int]]  # of tasks, [a, b)


class NodeShare(NamedTuple):
    """What the workers of one node get of a dispatch: the runs of each, and the stored records that they read."""

    members: list[Member]
    own: list[Runs]
    parcel: Parcel | None


class Transfer:
    """Transfers of one run.

    Args:
        job: of the run.
        states: the clients' states.
        local: the driver's node.

    Attributes:
        traffic: bytes to and from other nodes since the run began, by kind: "job", "dispatch", "states_down",
            "states_up", "result". Each node counts once, as the object store sends a value to a node once.
    """

    def __init__(self, job: Job, states: ClientStates, local: str):
        self.job, self.states, self.local = job, states, local
        self.traffic: Counter[str] = Counter()
        self.buffer = np.empty(0, np.uint8)

    def far(self, members: Sequence[Member]) -> set[str]:
        """Return the nodes of workers that do not see the driver's files."""
        return {member.node for member in members} - {self.local}

    def put(self, kind: str, region: Region, handle: Handle, members: Sequence[Member]) -> Any:
        """Put a value's bytes into the object store; None if all members are on the driver's node."""
        far = self.far(members)
        if not far:
            return None
        memory = region.copy(handle)
        self.traffic[kind] += len(far) * (memory.nbytes + len(handle.code))
        return _put(memory)

    # -- to the workers -------------------------------------------------------------------------------------------
    def shares(self, dispatch: Dispatch, members: Sequence[Member], tasks: np.ndarray) -> Iterator[NodeShare]:
        """Yield the share of each node. Its workers steal from each other, and not from other nodes.

        Args:
            dispatch: the work.
            members: workers that take part.
            tasks: task numbers, (m,), ascending.
        """
        shares = split(dispatch.costs()[tasks], tasks, len(members))
        groups = [list(g) for _, g in itertools.groupby(sorted(members, key=lambda m: m.node), key=lambda m: m.node)]
        if not self.far(members):
            yield from (NodeShare(group, shares, None) for group in groups)
            return
        with spans.span("transfer", "records"):
            records = self.job.records(dispatch, tasks)
        homes = _Homes(self.states, members, len(self.job.stores))
        for group, own in _placed(groups, shares, records, homes, dispatch.pin, self.local):
            with spans.span("transfer", "records"):
                yield NodeShare(group, own, self._parcel(group[0].node, _of_runs(records, own), homes))

    def _parcel(self, node: str, records: np.ndarray, homes: _Homes) -> Parcel | None:
        """Return the records (n, 5) that are not on a node; None if all are, or it is the driver's."""
        if node == self.local:
            return None
        missing = records[homes.of(records) != homes.number(node)]
        if not len(missing):
            return None
        places, start = np.empty((len(missing), 5), np.int64), 0
        pieces: list[Any] = []
        places[:, :3] = missing[:, 1:4]
        sizes = missing[:, 4]
        while start < len(missing):
            fits = int(np.searchsorted(np.cumsum(sizes[start:]), PIECE, side="right"))
            stop = start + max(fits, 1)
            offsets, total = aligned_offsets(sizes[start:stop].tolist())
            places[start:stop, 3], places[start:stop, 4] = len(pieces), offsets
            pieces.append(_put(self._read(missing[start:stop], offsets, total)))
            self.traffic["states_down"] += total
            start = stop
        self.traffic["states_down"] += places.nbytes
        return Parcel(places, pieces)

    def _read(self, records: np.ndarray, offsets: Sequence[int], total: int) -> np.ndarray:
        """Return the bytes of records (n, 5), each at its offset of a piece, (total,); valid until the next call."""
        if total > len(self.buffer):
            self.buffer = np.empty(max(total, PIECE), np.uint8)
        piece, opened = self.buffer[:total], dict[tuple[int, int], int]()
        try:
            in_files = records.copy()
            in_files[:, 2] = file_of(records[:, 2])
            for (_, store, segment, start, length), at in zip(in_files.tolist(), offsets):
                if (store, segment) not in opened:
                    path = segment_path(self.job.stores[store], segment)
                    try:
                        opened[store, segment] = os.open(path, os.O_RDONLY)
                    except FileNotFoundError:
                        raise Damaged(f"{path} is missing") from None
                # if the file ends before, other bytes are sent: the worker compares the checksum
                files.read_at(opened[store, segment], piece[at : at + length].data, start)
        finally:
            for file in opened.values():
                os.close(file)
        return piece

    # -- from the workers -----------------------------------------------------------------------------------------
    def take(self, member: Member, records: Sequence[NewRecords], handle: Handle) -> None:
        """Write the records of a worker to the driver's files.

        Raises:
            WorkerDied: the worker has ended before all have come.
        """
        if member.node == self.local:
            return
        self.traffic["result"] += len(handle.code) + (0 if handle.memory is None else handle.memory.nbytes)
        with spans.span("transfer", "records"):
            for new, pieces in _pieces(member, records):
                path = segment_path(self.job.stores[new.store], new.segment)
                if new.start == 0:  # the segment begins again
                    files.remove(path)
                file, at = files.open_file(path, os.O_CREAT | os.O_WRONLY), new.start
                try:
                    for piece in pieces:
                        at = files.write_at(file, piece, at)
                finally:
                    os.close(file)
                self.traffic["states_up"] += new.end - new.start


class _Homes:
    """On which node a record lies, beside the driver's.

    Args:
        states: the clients' states.
        members: workers that are alive. Their nodes keep what they have written since the last compaction.
        stores: number of stores.
    """

    def __init__(self, states: ClientStates, members: Sequence[Member], stores: int):
        self.numbers = {node: number for number, node in enumerate(sorted({m.node for m in members}))}
        writers = np.array([member.writer for member in members])
        self.nodes = np.full(int(writers.max()) + 2, -1)  # the last one stands for unknown writers
        self.nodes[writers] = [self.numbers[member.node] for member in members]
        self.generation = states.generation

    def number(self, node: str) -> int:
        """Return the number of a node."""
        return self.numbers[node]

    def of(self, records: np.ndarray) -> np.ndarray:
        """Return the node's number of each record (n, 5); -1 if only the driver has it."""
        generations, writers = writer_of(records[:, 2])
        known = (generations == np.where(records[:, 1] == 0, self.generation, 0)) & (writers < len(self.nodes) - 1)
        return self.nodes[np.where(known, writers, len(self.nodes) - 1)]


def _placed(
    groups: list[list[Member]], shares: list[Runs], records: np.ndarray, homes: _Homes, pin: bool, local: str
) -> Iterator[tuple[list[Member], list[Runs]]]:
    """Yield (workers of a node, their shares). Shares are neighbouring tasks, so that workers can add up results.

    In the order of tasks, the next share goes to the node that has most bytes of the records that it reads; without
    any, to the driver's node, then by the nodes' names. With `pin` it goes by name, which is the same in all exchanges.
    """
    left, start = sorted(groups, key=lambda group: (group[0].node != local, group[0].node)), 0
    while left:
        best = left[0]
        if not pin and len(left) > 1:
            sizes = {len(group) for group in left}
            found = {size: _bytes_by_node(_of_runs(records, shares[start : start + size]), homes) for size in sizes}
            best = max(left, key=lambda g: 0 if g[0].node == local else found[len(g)][homes.number(g[0].node)] / len(g))
        left = [group for group in left if group is not best]
        yield best, shares[start : start + len(best)]
        start += len(best)


def _bytes_by_node(records: np.ndarray, homes: _Homes) -> np.ndarray:
    """Return the bytes of records (n, 5) that each node has, (nodes,)."""
    nodes = homes.of(records)
    return np.bincount(nodes[nodes >= 0], records[nodes >= 0, 4], len(homes.numbers))


def _of_runs(records: np.ndarray, shares: Sequence[Runs]) -> np.ndarray:
    """Return the records of the tasks in some workers' runs; both are in the order of tasks."""
    runs = [run for share in shares for run in share]
    if not runs:
        return records[:0]
    first, last = np.searchsorted(records[:, 0], [runs[0][0], runs[-1][1]])
    return records[first:last]


def _pieces(member: Member, records: Sequence[NewRecords]) -> Iterator[tuple[NewRecords, Iterable[bytes | memoryview]]]:
    """Yield new records and their bytes, in pieces; all come with the answer, or all over the member's connection."""
    places = [new.place for new in records if new.data is None]
    if not places:
        yield from ((new, [new.data or b""]) for new in records)
        return
    assert isinstance(member.channel, RemoteChannel)
    receiver = member.channel.receiver
    call = receiver.ask(places)
    yield from ((new, receiver.receive(new.end - new.start, call)) for new in records)


def _put(array: np.ndarray) -> Any:
    import ray

    return ray.put(array)
