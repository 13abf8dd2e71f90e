"""Tasks shared out among workers: each has a run [front, back) of neighbouring tasks, and steals when its own is empty.

Neighbouring tasks stay with one worker, so that it can add up their results.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, MutableSequence, Sequence

import numpy as np


def split(costs: np.ndarray, tasks: np.ndarray, workers: int) -> list[list[tuple[int, int]]]:
    """Split tasks into shares of about equal cost.

    Args:
        costs: expected work of each task, (n,).
        tasks: task numbers, (n,), ascending.
        workers: number of shares.

    Returns:
        for each worker a list of runs [a, b) of consecutive tasks.

    >>> split(np.array([1.0, 1.0, 2.0]), np.array([0, 1, 2]), 2)
    [[(0, 2)], [(2, 3)]]
    """
    middle = np.cumsum(costs) - costs / 2
    owner = np.minimum((middle / max(costs.sum(), 1e-300) * workers).astype(int), workers - 1)
    shares = []
    for worker in range(workers):
        own = tasks[owner == worker]
        pieces = np.split(own, np.flatnonzero(np.diff(own) != 1) + 1)
        shares.append([(int(p[0]), int(p[-1]) + 1) for p in pieces if len(p)])
    return shares


def next_task(runs: Sequence[MutableSequence[int]] | np.ndarray, worker: int, steal: bool = True) -> int | None:
    """Return the next task of a worker, and advance the front of its run.

    When the run is empty, the worker takes the second half of the longest other run (rounded up). Returns `None` if no
    task is left, or if the worker's own run is empty and `steal` is False.
    """
    front, back = map(int, runs[worker])
    if front < back:
        runs[worker][0] = front + 1
        return front
    victim = max(range(len(runs)), key=lambda w: runs[w][1] - runs[w][0])
    front, back = map(int, runs[victim])
    if front == back or not steal:
        return None
    front += (back - front) // 2
    runs[victim][1] = front
    runs[worker][:] = front + 1, back
    return front


class TaskQueue:
    """The tasks of threads in one process, one run for each thread.

    Args:
        costs: expected work of each task, (n,); None: there is one task for each thread.
        workers: number of threads.
    """

    def __init__(self, costs: np.ndarray | None, workers: int):
        if costs is None:
            self.runs = [[worker, worker + 1] for worker in range(workers)]
        else:
            shares = split(costs, np.arange(len(costs)), workers)
            self.runs = [list(share[0]) if share else [0, 0] for share in shares]
        self.lock = threading.Lock()

    def tasks(self, worker: int) -> Iterator[tuple[int, int]]:
        """Yield runs [a, a + 1) until no task is left."""
        while (task := self._next(worker)) is not None:
            yield task, task + 1

    def _next(self, worker: int) -> int | None:
        with self.lock:
            return next_task(self.runs, worker)

    def stop(self) -> None:
        """Drop all tasks that no thread has taken."""
        with self.lock:
            self.runs = [[0, 0] for _ in self.runs]
