"""Runs [front, back) of tasks: neighbours stay with one worker, so that it can add up what comes of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, MutableSequence

import numpy as np


def cut(costs: np.ndarray, tasks: np.ndarray, workers: int) -> list[list[tuple[int, int]]]:
    """Shares of about equal cost for each worker, in order, each a list of runs [a, b) of consecutive tasks."""
    middle = np.cumsum(costs) - costs / 2
    owner = np.minimum((middle / max(costs.sum(), 1e-300) * workers).astype(int), workers - 1)
    shares = []
    for w in range(workers):
        mine = tasks[owner == w]
        pieces = np.split(mine, np.flatnonzero(np.diff(mine) != 1) + 1)
        shares.append([(int(p[0]), int(p[-1]) + 1) for p in pieces if len(p)])
    return shares


def take(runs: MutableSequence[MutableSequence[int]] | np.ndarray, me: int, steal: bool = True) -> int | None:
    """The next task of `runs[me]`, whose front moves on. When that is empty, the longer half of the longest other is mine; `None` if there
    is nothing left, or none of mine and no stealing."""
    front, back = map(int, runs[me])
    if front < back:
        runs[me][0] = front + 1
        return front
    victim = max(range(len(runs)), key=lambda w: runs[w][1] - runs[w][0])
    front, back = map(int, runs[victim])
    if front == back or not steal:
        return None
    front += (back - front) // 2
    runs[victim][1] = front
    runs[me][:] = front + 1, back
    return front


class TaskQueue:
    """Of threads, each with one."""

    def __init__(self, costs: np.ndarray, workers: int):
        shares = cut(costs, np.arange(len(costs)), workers)
        self.runs, self.lock = [list(share[0]) if share else [0, 0] for share in shares], threading.Lock()

    def tasks(self, me: int) -> Iterator[tuple[int, int]]:
        while (task := self._take(me)) is not None:
            yield task, task + 1

    def _take(self, me: int) -> int | None:
        with self.lock:
            return take(self.runs, me)

    def stop(self) -> None:
        """Nobody takes any more."""
        with self.lock:
            self.runs = [[0, 0] for _ in self.runs]
