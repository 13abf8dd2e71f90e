"""What runs in a worker process of Ray. The module is light, so that whoever hires need not import torch; the process does."""

from __future__ import annotations

import os
import pickle
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from fl.execution.workers.shared import Handle
    from fl.tracking import spans


class Actor:
    """A worker process. Values come as handles; `memory` replaces the mapped file on nodes that do not see it."""

    def where(self) -> tuple[str, int]:
        """The node and the process this worker is; what every job needs has been imported."""
        import ray

        import fl.execution.worker  # noqa: F401

        return ray.get_runtime_context().get_node_id(), os.getpid()

    def setup(
        self,
        sources: dict,
        handle: Handle,
        recording: bool,
        memory: np.ndarray | None,
        writer: int,
        prefix: str,
        local: str,
    ) -> None:
        """Take the job."""
        import ray

        from fl import registry
        from fl.execution.workers.shared import Queue, Region, folder
        from fl.tracking import spans

        spans.record_spans(recording)
        registry.adopt(sources)
        self.node = ray.get_runtime_context().get_node_id()
        self.near, self.prefix = self.node == local, prefix
        self.region, self.queue = Region(prefix), Queue(folder() / f"{prefix}-{self.node[:8]}-queue")
        self.worker = self._open(handle, memory).worker(writer)

    def serve(self, path: str) -> None:
        """Answer the driver on this machine by a socket, until it hangs up."""
        from fl.execution.workers.channel import serve

        serve(self, path)

    def clock(self) -> float:
        return time.perf_counter()

    def run(self, order: bytes, memory: np.ndarray | None) -> tuple[Handle, spans.SpanRecord | None]:
        """Work through a share of an order. One argument of bytes: Ray spends a tenth of a millisecond on each."""
        from fl.tracking import spans

        with spans.span("transfer", "call"):
            handle, number, runs, steal, me, segment = pickle.loads(order)
            tasks = self.queue.tasks(number, runs, me, steal)
            answer = self._answer(self.worker.run(self._open(handle, memory), tasks, segment))
        return answer, spans.take_record(spans.MAX_SENT)

    def call(self, handle: Handle, memory: np.ndarray | None) -> tuple[Handle, spans.SpanRecord | None]:
        from fl.tracking import spans

        with spans.span("transfer", "call"):
            fn, args = self._open(handle, memory)
            with spans.span("server", "work"):
                value = fn(*args)
            answer = self._answer(value)
        return answer, spans.take_record(spans.MAX_SENT)

    def retire(self) -> None:
        """Put the job away; on another node than the driver's, remove its shared files."""
        import gc

        from fl.execution.workers.process import trim
        from fl.execution.workers.shared import remove

        if not self.near:
            remove(self.prefix)
        self.worker.close()
        self.queue.close()
        del self.worker, self.region, self.queue
        gc.collect()
        trim()

    def _open(self, handle: Handle, memory: np.ndarray | None) -> Any:
        return (handle if self.near else replace(handle, memory=memory)).open()

    def _answer(self, value: Any) -> Handle:
        handle = self.region.write(value)
        return handle if self.near else replace(handle, memory=self.region.copy(handle))


def create_actors(count: int, gpu: float, prefix: str | None = None) -> list[Any]:
    """New actors, which begin to import, each with that much of a GPU; with a `prefix` they have names, prefix-0, ..."""
    import ray

    kind = ray.remote(num_cpus=1, num_gpus=gpu, max_restarts=0, scheduling_strategy="SPREAD")(Actor)
    return [kind.options(name=prefix and f"{prefix}-{i}").remote() for i in range(count)]
