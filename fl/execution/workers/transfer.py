"""What travels between the driver and workers on other nodes, which share no file with it.

    job                driver -> Ray's object store -> each node once
    dispatch           driver -> a worker of each node -> memory that the node's workers share
    stored records     driver's file -> that worker -> file of the node       unless its workers have written them
    partial result     each worker -> driver's memory
    new records        each worker's file -> driver's file

All but the job goes over the workers' own connections. A record lies at the same place in all files. Nothing here runs
if all workers are on the driver's node.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from fl.execution.workers.byte_stream import FilePart, check_files
from fl.execution.workers.channel import Member
from fl.execution.workers.executor import Dispatch, Job
from fl.execution.workers.node_records import NewRecords
from fl.execution.workers.shared import Handle, Region
from fl.execution.workers.task_queue import split
from fl.storage import files
from fl.storage.clients import ClientStates, writer_of
from fl.storage.records import file_of, segment_path
from fl.tracking import spans

Runs = list[tuple[int, int]]  # of tasks, [a, b)
_NO_RECORDS = np.empty((0, 5), np.int64)


class NodeShare(NamedTuple):
    """What the workers of one node get of a dispatch: the runs of each, and the records (n, 5) that the node lacks."""

    members: list[Member]
    own: list[Runs]
    records: np.ndarray


class Transfer:
    """Transfers of one run.

    Args:
        job: of the run.
        states: the clients' states.
        local: the driver's node.

    Attributes:
        traffic: bytes to and from other nodes since the run began, by kind: "job", "dispatch", "states_down",
            "states_up", "result". Each node counts once, because a value travels to a node once.
    """

    def __init__(self, job: Job, states: ClientStates, local: str):
        self.job, self.states, self.local = job, states, local
        self.traffic: Counter[str] = Counter()

    def far(self, members: Sequence[Member]) -> set[str]:
        """Return the nodes of workers that do not see the driver's files."""
        return {member.node for member in members} - {self.local}

    # -- to the workers -------------------------------------------------------------------------------------------
    def put_job(self, region: Region, handle: Handle, members: Sequence[Member]) -> Any:
        """Put the job's bytes into Ray's object store; None if all members are on the driver's node."""
        import ray

        far = self.far(members)
        if not far:
            return None
        self.traffic["job"] += len(far) * (handle.size + len(handle.code))
        return ray.put(np.frombuffer(region.memory(handle), np.uint8))

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
            yield from (NodeShare(group, shares, _NO_RECORDS) for group in groups)
            return
        with spans.span("transfer", "records"):
            records = self.job.records(dispatch, tasks)
        homes = _Homes(self.states, members, len(self.job.stores))
        for group, own in _placed(groups, shares, records, homes, dispatch.pin, self.local):
            node, read = group[0].node, _of_runs(records, own)
            missing = _NO_RECORDS if node == self.local else read[homes.of(read) != homes.number(node)]
            yield NodeShare(group, own, missing)

    def deliver(self, member: Member, region: Region, handle: Handle, records: np.ndarray) -> Handle:
        """Give a worker the present value of a region and stored records (n, 5), for all workers of its node.

        Returns:
            the value's handle on that node.

        Raises:
            HungUp: the worker has ended.
            Damaged: a file of the driver is missing or too short.
        """
        with spans.span("transfer", "records"):
            places = _places(records)
            parts = [FilePart(segment_path(self.job.stores[s], file), *span) for s, file, *span in places.tolist()]
            check_files(parts)
            self.traffic["dispatch"] += handle.size + len(handle.code)
            self.traffic["states_down"] += places.nbytes + sum(part.end - part.start for part in parts)
            held: Handle = member.channel.ask("hold", handle, places, pieces=[region.memory(handle), *parts])
            return held

    # -- from the workers -----------------------------------------------------------------------------------------
    def take(self, member: Member, records: Sequence[NewRecords], handle: Handle) -> Handle:
        """Receive what follows a worker's answer: a value, and new records, which go to the driver's files.

        Returns:
            the value's handle on the driver's node.

        Raises:
            HungUp: the worker has ended before all have come.
        """
        if member.node == self.local:
            return handle
        stream, memory = member.channel.stream, member.room(handle.size)
        self.traffic["result"] += len(handle.code) + handle.size
        with spans.span("transfer", "answer"):
            stream.receive_into(memory.data)
        with spans.span("transfer", "records"):
            for new in records:
                path = segment_path(self.job.stores[new.store], new.segment)
                if new.start == 0:  # the segment begins again
                    files.remove(path)
                file = files.open_file(path, os.O_CREAT | os.O_WRONLY)
                try:
                    stream.receive_to_file(file, new.start, new.end)
                finally:
                    os.close(file)
                self.traffic["states_up"] += new.end - new.start
        return replace(handle, memory=memory)


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


def _places(records: np.ndarray) -> np.ndarray:
    """Return the parts of files that hold records (n, 5), int64 (m, 4): store, file, start, end; ascending.

    >>> _places(np.array([[0, 0, 7, 64, 64], [1, 0, 7, 0, 64], [1, 0, 7, 64, 64], [2, 1, 7, 128, 64]])).tolist()
    [[0, 7, 0, 128], [1, 7, 128, 192]]
    """
    each = np.column_stack([records[:, 1], file_of(records[:, 2]), records[:, 3], records[:, 3] + records[:, 4]])
    each = np.unique(each, axis=0)
    new = np.ones(len(each) + 1, bool)  # whether a part begins; the last one stands for the end
    new[1:-1] = (each[1:, :2] != each[:-1, :2]).any(1) | (each[1:, 2] != each[:-1, 3])
    parts = each[new[:-1]]
    parts[:, 3] = each[new[1:], 3]
    return parts
