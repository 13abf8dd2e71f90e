"""The actor that runs in a worker process of Ray. Importing this module is cheap; torch is imported in the process."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from fl.execution.workers.byte_stream import Piece
    from fl.execution.workers.channel import Address, Answer
    from fl.execution.workers.node_records import NewRecords
    from fl.execution.workers.shared import Handle


class Actor:
    """A worker process. Ray calls `where`, `setup`, `serve` and `retire`, and a channel the other methods."""

    def where(self) -> tuple[str, int]:
        """Return node and process id, once everything that a job needs is imported."""
        import ray

        import fl.execution.worker  # noqa: F401

        return ray.get_runtime_context().get_node_id(), os.getpid()

    def setup(
        self,
        sources: dict[str, tuple[str, str]],
        handle: Handle,
        recording: bool,
        memory: np.ndarray | None,
        writer: int,
        name: str,
        local: str,
        client_seconds: float | None,
    ) -> None:
        """Take a job.

        Args:
            sources: files of registered parts.
            handle: the job.
            recording: whether to record spans.
            memory: the job's bytes, on other nodes than the driver's.
            writer: number of the worker's segments.
            name: of the run's shared files.
            local: the driver's node.
            client_seconds: longest time for one client; the process ends after a longer one.
        """
        import ray

        from fl import registry
        from fl.execution.workers.deaths import Deadline
        from fl.execution.workers.node_records import NodeRecords
        from fl.execution.workers.shared import Region, SharedFiles, SharedQueue
        from fl.tracking import spans

        spans.record_spans(recording)
        registry.adopt(sources)
        self.node = ray.get_runtime_context().get_node_id()
        self.is_local = self.node == local
        # two nodes may be on one machine
        self.files = SharedFiles(name if self.is_local else f"{name}-{self.node[:8]}")
        self.region, self.queue = Region(self.files), SharedQueue(self.files.queue)
        self.deadline = Deadline(self.files.folder.path, client_seconds)
        job = replace(handle, memory=memory).open()
        self.records = None if self.is_local else NodeRecords(self.files.name, job.stores)
        self.worker = job.worker(writer) if self.records is None else job.worker(writer, self.records.open)

    def serve(self, address: Address, key: bytes) -> None:
        """Connect to the driver, and answer it until it hangs up; both know the key."""
        from fl.execution.workers.channel import connected, serve

        self.stream = connected(address, key)
        try:
            serve(self, self.stream)
        finally:
            self.stream.close()

    def clock(self) -> float:
        """Return this process's clock, in seconds."""
        return time.perf_counter()

    def hold(self, handle: Handle, places: np.ndarray) -> Handle:
        """Take a dispatch for all workers of this node, and the stored records that its tasks read.

        Args:
            handle: the dispatch; its bytes come from the stream.
            places: of the records, see `NodeRecords.arrive`; their bytes come next.
        """
        assert self.records is not None
        held = self.region.fill(handle, self.stream.receive_into)
        self.records.arrive(places, self.stream)
        return held

    def run(
        self, handle: Handle, number: int, runs: list[tuple[int, int]], steal: bool, index: int, segment: int
    ) -> Answer:
        """Compute a share of a dispatch.

        Args:
            handle: the dispatch.
            number: of the attempt, for the queue.
            runs: tasks of the node's workers.
            steal: whether to take tasks of others.
            index: of this worker on the node.
            segment: new states go there.
        """
        from fl.tracking import spans

        with spans.span("transfer", "call"):
            dispatch = handle.open()
            with self.deadline:
                tasks = self.deadline.watched(self.queue.tasks(number, runs, index, steal), dispatch.clients)
                packed = self._packed(self.worker.run(dispatch, tasks, segment))
        return self._answer(*packed)

    def compact(self, segment: int, locations: np.ndarray) -> None:
        """Follow a compaction of the clients' states by the driver, on another node; see `NodeSegments.compact`."""
        assert self.records is not None
        self.records.compact(segment, locations)

    def call(self, handle: Handle) -> Answer:
        """Call a function of the server, on the driver's node."""
        from fl.execution.isolation import isolated
        from fl.tracking import spans

        with spans.span("transfer", "call"):
            fn, args = handle.open()
            with spans.span("server", "work"), isolated():
                value = fn(*args)
            packed = self._packed(value)
        return self._answer(*packed)

    def last_words(self, attempt: int, index: int, pid: int) -> tuple[int | None, str]:
        """Return the task in which another worker on this node ended, and where it was if it took too long."""
        from fl.execution.workers.deaths import late

        return self.queue.present_task(attempt, index), late(self.files.folder.path, pid)

    def retire(self) -> None:
        """Drop the job; on another node than the driver's, remove its shared files."""
        import gc

        from fl.execution.workers.process import trim

        if self.is_local:
            self.files.leave()
        else:
            self.files.remove()
        self.worker.close()
        self.queue.close()
        if self.records is not None:
            self.records.leave()
        del self.worker, self.region, self.queue, self.files, self.deadline, self.records
        gc.collect()
        trim()

    def _packed(self, value: Any) -> tuple[Handle, list[NewRecords], list[Piece]]:
        """Return a value's handle and new records; on another node than the driver's also the bytes of both."""
        from fl.execution.workers.shared import in_a_row, packed

        if self.records is None:
            return self.region.write(value), [], []
        handle, memories = packed(value)
        records, parts = self.records.new()
        return handle, records, [*in_a_row(handle, memories), *parts]

    def _answer(self, handle: Handle, records: list[NewRecords], pieces: list[Piece]) -> Answer:
        from fl.execution.workers.channel import Answer
        from fl.tracking import spans

        return Answer((handle, spans.take_record(spans.MAX_SENT), records), pieces)


def create_actors(count: int, gpu: float, prefix: str | None = None) -> list[Any]:
    """Create actors, which begin to import.

    Args:
        count: how many.
        gpu: the share of a GPU that each gets.
        prefix: names them prefix-0, prefix-1, ...
    """
    import ray

    kind = ray.remote(num_cpus=1, num_gpus=gpu, max_restarts=0, scheduling_strategy="SPREAD")(Actor)
    return [kind.options(name=prefix and f"{prefix}-{i}").remote() for i in range(count)]
