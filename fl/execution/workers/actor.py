"""The actor that runs in a worker process of Ray. Importing this module is cheap; torch is imported in the process."""

from __future__ import annotations

import os
import pickle
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from fl.execution.workers.node_records import NewRecords
    from fl.execution.workers.shared import Handle
    from fl.storage.node_segments import Parcel
    from fl.tracking import spans


class Actor:
    """A worker process. Values come as handles; on other nodes `memory` replaces the mapped file."""

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
        job = self._open(handle, memory)
        self.records = None if self.is_local else NodeRecords(self.files.name, job.stores)
        self.worker = job.worker(writer) if self.records is None else job.worker(writer, self.records.open)

    def serve(self, path: str, key: bytes) -> None:
        """Answer a driver on this machine over a socket until it hangs up; both know the key."""
        from fl.execution.workers.channel import serve

        serve(self, path, key)

    def clock(self) -> float:
        """Return this process's clock, in seconds."""
        return time.perf_counter()

    def run(
        self, request: bytes, memory: np.ndarray | None = None, parcel: Parcel | None = None
    ) -> tuple[Handle, spans.SpanRecord | None, list[NewRecords]]:
        """Compute a share of a dispatch.

        Args:
            request: handle, place in the queue and segment: one argument, because Ray spends 0.1 ms on each.
            memory: the dispatch's bytes, on other nodes than the driver's.
            parcel: stored records that the tasks read, on other nodes.
        """
        from fl.tracking import spans

        with spans.span("transfer", "call"):
            handle, number, runs, steal, index, segment = pickle.loads(request)
            dispatch = self._open(handle, memory)
            if self.records is not None:
                self.records.arrive(parcel)
            with self.deadline:
                tasks = self.deadline.watched(self.queue.tasks(number, runs, index, steal), dispatch.clients)
                answer = self._answer(self.worker.run(dispatch, tasks, segment))
            records = [] if self.records is None else self.records.new()
        return answer, spans.take_record(spans.MAX_SENT), records

    def compact(self, segment: int, locations: np.ndarray) -> None:
        """Follow a compaction of the clients' states by the driver, on another node; see `NodeSegments.compact`."""
        assert self.records is not None
        self.records.compact(segment, locations)

    def connect(self, host: str, port: int, key: bytes) -> None:
        """Connect to a driver on another node, for `send_records`; both know the key."""
        assert self.records is not None
        self.records.connect(host, port, key)

    def send_records(self, places: Sequence[tuple[int, int, int, int]]) -> None:
        """Send bytes of this node's segments to the driver, (store, segment, start, end) each."""
        assert self.records is not None
        self.records.send(places)

    def call(self, handle: Handle) -> tuple[Handle, spans.SpanRecord | None, list[NewRecords]]:
        """Call a function of the server, on the driver's node."""
        from fl.execution.isolation import isolated
        from fl.tracking import spans

        with spans.span("transfer", "call"):
            fn, args = self._open(handle, None)
            with spans.span("server", "work"), isolated():
                value = fn(*args)
            answer = self._answer(value)
        return answer, spans.take_record(spans.MAX_SENT), []

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

    def _open(self, handle: Handle, memory: np.ndarray | None) -> Any:
        return (handle if self.is_local else replace(handle, memory=memory)).open()

    def _answer(self, value: Any) -> Handle:
        handle = self.region.write(value)
        return handle if self.is_local else replace(handle, memory=self.region.copy(handle))


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
