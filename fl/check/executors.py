"""Executors that divide the work in unusual ways; the results must not depend on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from fl.execution.columns import Columns
from fl.execution.dispatch import DispatchResult, ExchangeDispatch, PartialResult
from fl.execution.workers.executor import Job, Worker, nothing
from fl.storage.clients import ClientStates
from fl.tensors import random


class ResidentWorkers:
    """Base: `workers` workers in this process; subclasses say which worker runs which task."""

    workers = 1
    remote = False

    def prepare(self) -> None:
        """Do nothing: workers in this process need no start-up."""

    def start(self, job: Job, states: ClientStates) -> None:
        """Make the workers of a job."""
        self.states = states
        writers = [states.new_writer() for _ in range(self.workers)]
        self.team: list[tuple[Worker, int]] = [(job.worker(writer), writer) for writer in writers]

    def run(self, order: ExchangeDispatch, meanwhile: Callable[[], None] = nothing) -> DispatchResult:
        """Run all tasks of a dispatch and fold their results."""
        raise NotImplementedError

    def run_tasks(self, worker: int, order: ExchangeDispatch, tasks: list[int]) -> PartialResult:
        """Run single tasks, in this order, on one worker."""
        resident, writer = self.team[worker]
        return resident.run(order, [(task, task + 1) for task in tasks], self.states.segment(writer))

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Run server work in this process."""
        return fn(*args)

    def close(self) -> None:
        """Close the workers."""
        for worker, _ in getattr(self, "team", ()):
            worker.close()


class Scattered(ResidentWorkers):
    """Two workers take single tasks in a shuffled order."""

    workers = 2

    def run(self, order: ExchangeDispatch, meanwhile: Callable[[], None] = nothing) -> DispatchResult:
        tasks = random.permutation(order.tasks, "scattered", order.number)
        parts = [self.run_tasks(0, order, tasks[1::2].tolist())]
        meanwhile()  # what the server does while workers train must not change results
        return order.gather([*parts, self.run_tasks(1, order, tasks[::2].tolist())])


class LeftToRight(ResidentWorkers):
    """Updates are added one after the other instead of in the engine's tree. Tasks must be of one client each."""

    def run(self, order: ExchangeDispatch, meanwhile: Callable[[], None] = nothing) -> DispatchResult:
        if order.kind != "work" or not len(order.cohort):
            return order.gather([self.run_tasks(0, order, list(range(order.tasks)))])
        value, done = None, DispatchResult(None, Columns())
        for task in range(order.tasks):
            part = self.run_tasks(0, order, [task])
            (update,) = part.nodes.values()
            if value is None:
                value = update
            elif update is not None:
                value = order.reduction.merge(value, update)
            done.columns.extend(part.columns)
        return replace(done, value=None if value is None else order.reduction.finish(value))
