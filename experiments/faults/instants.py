"""Kill this process at its n-th call that changes files: before the call, after it, or in the middle of a write."""

from __future__ import annotations

import functools
import os
import random
import signal
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any

from fl.storage import files

CALLS = ("open", "mkdir", "replace", "unlink", "rmdir", "chmod", "ftruncate", "fsync", "pwrite", "pwritev")
WRITES = {"pwrite": 1, "pwritev": 1}  # name of a function -> position of what it writes


class Instants:
    """Counter of the calls that change files in this process.

    Args:
        seed: decides the moment within the fatal call.
        fatal: number of the call during which the process dies; None counts only.
        error: the call fails with this number of `errno`, and the process lives.
    """

    def __init__(self, seed: int, fatal: int | None, error: int | None = None):
        self.calls, self.fatal, self.error = 0, fatal, error
        self._random = random.Random(seed)

    def install(self) -> None:
        """Count from now on."""
        for name in CALLS:
            setattr(os, name, self._counting(name, getattr(os, name)))
        files.FileIO = self._file()  # type: ignore[misc]  # growing files write with it

    def now(self) -> bool:
        """Count a call; return whether the process has to die during it."""
        self.calls += 1
        return self.calls == self.fatal

    def end(self) -> None:
        """Die, or fail."""
        if self.error is None:
            die()
        else:
            raise OSError(self.error, os.strerror(self.error))

    def _counting(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def counted(*arguments: Any, **keywords: Any) -> Any:
            if name == "open" and not arguments[1] & (os.O_WRONLY | os.O_RDWR):
                return function(*arguments, **keywords)
            if self.now():
                if name in WRITES:
                    place = WRITES[name]
                    arguments = (*arguments[:place], self._part(arguments[place]), *arguments[place + 1 :])
                try:
                    if name in WRITES or (self.error is None and self._random.random() < 0.5):
                        function(*arguments, **keywords)
                finally:  # the call itself may fail, such as mkdir of a folder that exists
                    self.end()
            return function(*arguments, **keywords)

        return counted

    def _part(self, data: Any) -> Any:
        """The first bytes of what is written."""
        if isinstance(data, (list, tuple)):
            data = b"".join(bytes(piece) for piece in data)
            return [data[: self._random.randrange(len(data) + 1)]]
        return bytes(data)[: self._random.randrange(len(data) + 1)]

    def _file(self) -> type[FileIO]:
        instants = self

        class Counted(FileIO):
            """A file whose writes are counted."""

            def write(self, data: Any) -> int:
                if instants.now():
                    super().write(instants._part(data))
                    instants.end()
                return super().write(data)

        return Counted


def die() -> None:
    """End this process by SIGKILL."""
    if PLAN in os.environ:
        Path(os.environ[PLAN].partition(":")[0], f"dead-{os.getpid()}").touch()
    os.kill(os.getpid(), signal.SIGKILL)


# -- workers of Ray: sitecustomize.py calls this in each new process --------------------------------------------------
PLAN = "FL_FAULTS_PLAN"  # environment variable folder:kills:seed; the folder gets a mark for each plan and each death


def plan_of_worker() -> None:
    """Have this worker die at a random call, if kills are left."""
    folder, kills, seed = os.environ[PLAN].split(":")
    number = len(list(Path(folder).glob("plan-*")))
    if number < int(kills):
        Path(folder, f"plan-{number}-{os.getpid()}").touch()
        draw = random.Random(int(seed) + number)
        # a client that ends two workers in one exchange is named as the reason, so later workers live longer
        Instants(number, draw.randrange(1, 40) if number < 2 else draw.randrange(20, 60)).install()
