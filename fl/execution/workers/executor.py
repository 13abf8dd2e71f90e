"""Executors map client work over a cohort. `Serial` is the specification; every other equals it to the bit.

prepare()   while the job is being made      start(job, states)   once
run(order)  -> what came of it               call(fn, *args)      server work

What is done is not theirs to know: a `Job` makes workers, an `Dispatch` is cut into tasks, and workers answer parts of it. The
engine's are in fl/execution/worker.py, those of Flower apps in fl/flower/worker.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, Protocol

import numpy as np
import torch

from fl.execution.workers.process import exclusive
from fl.execution.workers.task_queue import TaskQueue
from fl.storage.clients import ClientStates
from fl.tracking.spans import recording


class Worker(Protocol):
    """Resident. `segment`: of the client states, where it writes."""

    def run(self, order: Any, tasks: Iterable[tuple[int, int]], segment: int) -> Any:
        """A part: what came of runs [a, b) of tasks."""

    def close(self) -> None: ...


class Job(Protocol):
    """What does not change in a run; it travels to the workers."""

    def worker(self, writer: int) -> Worker: ...


class Dispatch(Protocol):
    """Work for all of them. Parts and orders travel as pickles whose arrays lie in shared memory: a part is read before the
    next order is given."""

    tasks: int  # how many
    pin: bool  # whether tasks stay with the worker they were cut for
    free: bool  # whether workers in threads can be at it at once: it touches nothing they share, and computes `release_lock`

    def costs(self) -> np.ndarray:
        """(tasks,): the expected work, in any unit."""

    def missing(self, parts: Iterable[Any]) -> np.ndarray:
        """The tasks that no part covers."""

    def gather(self, parts: Iterable[Any], retried: int = 0) -> Any:
        """What came of it; nothing refers to the parts any more."""

    def where(self, task: int) -> str:
        """In words, for messages."""


class Executor(Protocol):
    """One whose clients are on other machines says `remote = True`, and is given broadcasts as they were before the codec."""

    workers: int
    remote: bool

    def prepare(self) -> None:
        """Begin to come up; `start` waits for it, `close` does not."""

    def start(self, job: Job, states: ClientStates) -> None: ...

    def run(self, order: Any) -> Any: ...

    def call(self, fn: Callable[..., Any], *args: Any) -> Any: ...

    def close(self) -> None: ...


class Serial:
    """A worker in this process, or, for work that is `free`, as many as `threads` (default: the cores)."""

    workers = 1
    remote = False

    def __init__(self, threads: int | None = None):
        self.threads = threads or torch.multiprocessing.cpu_count()
        self.pool = ThreadPoolExecutor(max(self.threads - 1, 1), "fl-worker")  # beside this one
        self.crew: list[tuple[Worker, int]] = []  # each with its writer's number

    def prepare(self) -> None:
        pass

    def start(self, job: Job, states: ClientStates) -> None:
        self.job, self.states = job, states
        self._hire()

    def run(self, order: Dispatch) -> Any:
        free = order.free and not recording()  # what is recorded is one thing after another
        several = min(order.tasks, self.threads) if free else 1
        while len(self.crew) < several:
            self._hire()
        if several <= 1:
            return order.gather([self._part(0, order, [(0, order.tasks)])])
        runs = TaskQueue(order.costs(), several)

        def part(k: int) -> Any:
            try:
                with exclusive():
                    return self._part(k, order, runs.tasks(k))
            except BaseException:
                runs.stop()  # the others take no more
                raise

        others = [self.pool.submit(part, k) for k in range(1, several)]
        try:
            return order.gather([part(0), *(other.result() for other in others)])
        finally:
            wait(others)

    def _hire(self) -> None:
        writer = self.states.new_writer()
        self.crew.append((self.job.worker(writer), writer))

    def _part(self, k: int, order: Dispatch, tasks: Iterable[tuple[int, int]]) -> Any:
        worker, writer = self.crew[k]
        return worker.run(order, tasks, self.states.segment(writer))

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        return fn(*args)

    def close(self) -> None:
        self.pool.shutdown()
        for worker, _ in self.crew:
            worker.close()
