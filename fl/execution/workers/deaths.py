"""Why a worker ended: a crash, the kernel that had no memory left, or a client that took too long.

A client that takes longer than `execution.client_timeout` is ended with its process, by a thread of Python's
faulthandler: it needs no lock of the interpreter, so it ends code in C, too. Before, it writes where the code was.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fl.execution.workers.executor import Dispatch


log = logging.getLogger(__name__)


class Deaths:
    """Workers that died in a run. A task that ends two of them in one dispatch stops the run.

    Args:
        client_seconds: longest time for one client, in seconds.
    """

    def __init__(self, client_seconds: float | None):
        self.client_seconds, self.kills = client_seconds, out_of_memory_kills()
        self.reason = ""  # of the last one

    def begin(self, dispatch: Dispatch) -> None:
        """Begin a dispatch, in which no task has ended a worker."""
        self.dispatch, self.tasks = dispatch, set[int]()

    def add(self, pid: int, task: int | None, place: str, trouble: str = "") -> None:
        """Enter the death of a worker.

        Args:
            pid: its process.
            task: the task that it worked on, if known.
            place: where its code was when a client took too long, else "".
            trouble: error outside the clients' code that ended its work, else "".

        Raises:
            Exception: the task has ended a worker before. The error names the clients.
        """
        kills, self.kills = self.kills, out_of_memory_kills()
        if place:
            reason = f"it took longer than execution.client_timeout, {self.client_seconds:g} s, at {place}"
        elif trouble:
            reason = f"it could not go on: {trouble}"
        elif self.kills > kills:
            reason = "the kernel ended its process, because memory ran out: use fewer execution.workers"
        else:
            reason = "its process crashed (a segmentation fault, os._exit) or was killed"
        self.reason = reason
        if task in self.tasks:
            assert task is not None
            raise self.dispatch.error(task, f"{reason}, for the second time")
        if task is not None:
            self.tasks.add(task)
        who = "its clients" if task is None else str(self.dispatch.error(task, reason))
        log.warning("worker %d died; trying again: %s", pid, who)


class Deadline:
    """Context that ends this process if one task takes too long.

    Args:
        folder: where the file for the last words lies.
        client_seconds: longest time for one client, in seconds; None: no limit.
    """

    def __init__(self, folder: Path, client_seconds: float | None):
        self.seconds = client_seconds
        self.file = open(_path(folder, os.getpid()), "w") if client_seconds else None

    def watched(self, tasks: Iterable[tuple[int, int]], clients: Callable[[int], int]) -> Iterator[tuple[int, int]]:
        """Yield runs [a, a + 1) of tasks; each has time for all its clients, (task) -> number."""
        for task, end in tasks:
            if self.seconds and self.file:
                faulthandler.dump_traceback_later(self.seconds * max(1, clients(task)), file=self.file, exit=True)
            yield task, end
        self.__exit__()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        if self.file:
            faulthandler.cancel_dump_traceback_later()


def late(folder: Path, pid: int) -> str:
    """Return where a process was when a client took too long, "" if that did not end it."""
    try:
        lines = _path(folder, pid).read_text().splitlines()
    except FileNotFoundError:
        return ""
    frames = [line.strip() for line in lines]
    threads = [k for k, line in enumerate(frames) if line.startswith(("Thread ", "Current thread "))]
    return next((line for line in frames[threads[-1] :] if line.startswith("File ")), "") if threads else ""


def out_of_memory_kills() -> int:
    """Return how many processes this machine's kernel has killed for lack of memory."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _path(folder: Path, pid: int) -> Path:
    return folder / f"late-{pid}"
