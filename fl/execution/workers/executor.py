"""Executors map client work over a cohort. `Serial` is the specification; every other executor gives the same bits.

    prepare()   while the job is being made        start(job, states)   once
    run(dispatch) -> its result                    call(fn, *args)      server work

Executors know nothing of the work: a `Job` makes workers, a `Dispatch` is split into tasks, and workers return partial
results. The engine's are in fl/execution/job.py and dispatch.py, those of Flower apps in fl/flower/worker.py.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, wait
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol

import numpy as np

from fl.execution.isolation import isolated
from fl.execution.workers.limits import cores
from fl.execution.workers.process import exclusive
from fl.execution.workers.task_queue import TaskQueue
from fl.storage.clients import ClientStates
from fl.storage.segments import Segments
from fl.tensors.generators import preserved_generators
from fl.tracking.spans import recording


class Worker(Protocol):
    """A resident worker."""

    def run(self, dispatch: Any, tasks: Iterable[tuple[int, int]], segment: int) -> Any:
        """Work through runs [a, b) of task numbers; return a partial result. New client states go to `segment`."""

    def close(self) -> None:
        """Close files."""


class Job(Protocol):
    """What does not change during a run; it travels to the workers."""

    @property
    def seeded(self) -> bool:
        """Whether workers seed the global generators, which belong to the user's program."""

    def hold_shared(self, shared: Callable[[], Any]) -> None:
        """Use parts of the job's copy in shared memory, which `shared` opens, in place of its own."""

    @property
    def stores(self) -> Sequence[Path]:
        """The folders of segments that workers read and write, that of client states first."""

    def records(self, dispatch: Any, tasks: np.ndarray) -> np.ndarray:
        """Return the stored records that tasks, (m,) ascending, read.

        They are int64 (n, 5): task, store, segment, offset, length in bytes; tasks ascending.
        """

    def worker(self, writer: int, open_store: Callable[[Path], Segments] = Segments) -> Worker:
        """Make a worker; `writer` numbers the segments that it writes, `open_store` opens one of the `stores`."""


class Dispatch(Protocol):
    """Work for all workers.

    Dispatches and partial results travel as pickles whose arrays lie in shared memory: a partial result is read before
    the next dispatch is sent.

    Attributes:
        pin: whether tasks stay with the worker that they were assigned to.
        threaded: whether threads may work at once: the work shares nothing, and computes inside `release_lock()`.
    """

    pin: bool

    @property
    def tasks(self) -> int:
        """Number of tasks."""

    @property
    def threaded(self) -> bool:
        """See above."""

    def costs(self) -> np.ndarray:
        """Return the expected work of each task in any unit, (tasks,)."""

    def missing(self, parts: Iterable[Any]) -> np.ndarray:
        """Return the tasks that no partial result covers."""

    def gather(self, parts: Iterable[Any], retried: int = 0) -> Any:
        """Return the result. Nothing refers to the partial results afterwards."""

    def clients(self, task: int) -> int:
        """Return the number of clients in a task."""

    def error(self, task: int, detail: str) -> Exception:
        """Return an error that names the clients of a task. `detail`: what happened to its worker."""


def nothing() -> None:
    """Do nothing."""


class Executor(Protocol):
    """Runs dispatches. `remote`: clients are on other machines, and it encodes broadcasts itself."""

    workers: int
    remote: bool

    def prepare(self) -> None:
        """Begin to start up; `start` waits until that is done, `close` does not."""

    def start(self, job: Job, states: ClientStates) -> None:
        """Give the workers a job."""

    def run(self, dispatch: Any, meanwhile: Callable[[], None] = nothing) -> Any:
        """Have the workers work, and return the dispatch's result.

        `meanwhile` is called in this thread if it would otherwise wait for workers. It raises no error.
        """

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Return fn(*args), computed by a worker."""

    def close(self) -> None:
        """Let the workers go."""


class Serial:
    """One worker in this process; threaded work is done by `threads` of them (default: one per core)."""

    workers = 1
    remote = False

    def __init__(self, threads: int | None = None):
        self.threads = threads or cores()
        self.helpers: list[_Helper] = []  # the threads beside this one
        self.residents: list[tuple[Worker, int]] = []  # each with its writer's number

    def prepare(self) -> None:
        """Nothing has to start up."""

    def start(self, job: Job, states: ClientStates) -> None:
        """Make the first worker; threads get theirs when they are needed."""
        self.job, self.states = job, states
        self._add_worker()

    def run(self, dispatch: Dispatch, meanwhile: Callable[[], None] = nothing) -> Any:
        """Work through all tasks, in order or by several threads."""
        threaded = dispatch.threaded and not recording()  # a profile records one thing after another
        count = min(dispatch.tasks, self.threads) if threaded else 1
        if count <= 1:
            worker, writer = self.residents[0]
            with preserved_generators() if self.job.seeded and not dispatch.threaded else nullcontext():
                return dispatch.gather([worker.run(dispatch, [(0, dispatch.tasks)], self.states.segment(writer))])
        while len(self.residents) < count:
            self._add_worker()
            self.helpers.append(_Helper())
        return self._in_threads(dispatch, count, meanwhile)

    def _in_threads(self, dispatch: Dispatch, count: int, meanwhile: Callable[[], None]) -> Any:
        queue = TaskQueue(None if dispatch.tasks == count else dispatch.costs(), count)

        def work(k: int) -> Any:
            try:
                with exclusive():
                    return self._part(k, dispatch, queue.tasks(k))
            except BaseException:
                queue.stop()
                raise

        others = [helper.begin(partial(work, k)) for k, helper in enumerate(self.helpers[: count - 1], 1)]
        try:
            results = [work(0)]
            meanwhile()
            results += [other.result() for other in others]
        except BaseException:  # also Ctrl-C while this thread waits
            queue.stop()
            wait(others)
            raise
        return dispatch.gather(results)

    def _part(self, k: int, dispatch: Dispatch, tasks: Iterable[tuple[int, int]]) -> Any:
        """Have worker k work through some tasks; return its partial result."""
        worker, writer = self.residents[k]
        return worker.run(dispatch, tasks, self.states.segment(writer))

    def _add_worker(self) -> None:
        """Make one more worker."""
        writer = self.states.new_writer()
        self.residents.append((self.job.worker(writer), writer))

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Return fn(*args)."""
        with isolated():
            return fn(*args)

    def close(self) -> None:
        """Stop the threads, and close the workers' files."""
        for helper in self.helpers:
            helper.stop()
        for worker, _ in self.residents:
            worker.close()


Calls = SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None]


class _Helper:
    """A thread that makes one call after another. A pool would need a tenth of a millisecond for each call."""

    def __init__(self) -> None:
        self.calls: Calls = SimpleQueue()
        self.thread = Thread(target=_serve, args=(self.calls,), name="fl-worker", daemon=True)
        self.thread.start()
        weakref.finalize(self, self.calls.put, None)  # a helper that nobody stops

    def begin(self, call: Callable[[], Any]) -> Future[Any]:
        """Begin a call; return its future."""
        future: Future[Any] = Future()
        self.calls.put((call, future))
        return future

    def stop(self) -> None:
        """End the thread after its present call."""
        self.calls.put(None)
        self.thread.join()


def _serve(calls: Calls) -> None:
    """Make calls until there is None."""
    while (one := calls.get()) is not None:
        call, future = one
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
        del one, call, future  # they hold the dispatch
