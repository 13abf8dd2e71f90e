"""Executors map client work over a cohort. `Serial` is the specification; every other equals it to the bit.

prepare()   while the job is being made      start(job, states)   once
run(order)  -> what came of it               call(fn, *args)      server work

What is done is not theirs to know: a `Job` makes workers, an `Order` is cut into tasks, and workers answer parts of it. The
engine's are in fl/execution/worker.py, those of Flower apps in fl/flower/worker.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np

from fl.storage.clients import ClientStates


class Worker(Protocol):
    """Resident. `segment`: of the client states, where it writes."""

    def run(self, order: Any, tasks: Iterable[tuple[int, int]], segment: int) -> Any:
        """A part: what came of runs [a, b) of tasks."""

    def close(self) -> None: ...


class Job(Protocol):
    """What does not change in a run; it travels to the workers."""

    def worker(self, writer: int) -> Worker: ...


class Order(Protocol):
    """Work for all of them. Parts and orders travel as pickles whose arrays lie in shared memory: a part is read before the
    next order is given."""

    tasks: int  # how many
    pin: bool  # whether tasks stay with the worker they were cut for

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
    """One worker, in this process."""

    workers = 1
    remote = False

    def prepare(self) -> None:
        pass

    def start(self, job: Job, states: ClientStates) -> None:
        self.states, self.writer = states, states.new_writer()
        self.worker = job.worker(self.writer)

    def run(self, order: Order) -> Any:
        return order.gather([self.worker.run(order, [(0, order.tasks)], self.states.segment(self.writer))])

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        return fn(*args)

    def close(self) -> None:
        with contextlib.suppress(AttributeError):  # never started
            self.worker.close()
