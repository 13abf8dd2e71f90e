"""Why a worker ended: a crash, the kernel that had no memory left, or a client that took too long.

A client that takes longer than `execution.client_timeout` is ended with its process, by a thread of Python's
faulthandler: it needs no lock of the interpreter, so it ends code in C, too. Before, it writes where the code was.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path


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
