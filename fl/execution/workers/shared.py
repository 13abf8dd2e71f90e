"""Memory that processes on one node share: values written once and mapped by all, and a queue of work.

Files live in the node's memory file system. A `Region` holds one value at a time; its `Handle` is a few hundred bytes and
opens to the value with every tensor and array mapped in place, private to the reader: writing to it changes no one else's.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl.execution.workers.task_queue import take
from fl.tensors.pickling import pack, unpack
from fl.tensors.serialise import aligned_offsets


def folder() -> Path:
    """Where shared files live: memory if the system has a file system for it."""
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())


def new_prefix() -> str:
    """A name for a run's files that tells whose they are; files of processes that are gone are removed."""
    for path in folder().glob("fl-*"):
        owner = re.match(r"fl-(\d+)-", path.name)
        if owner and not os.path.exists(f"/proc/{owner[1]}"):
            with contextlib.suppress(OSError):
                path.unlink()
    return f"fl-{os.getpid()}-{secrets.token_hex(4)}"


def remove(prefix: str) -> None:
    for path in folder().glob(f"{prefix}-*"):
        path.unlink(missing_ok=True)


QUEUE_BYTES = (
    1 << 20
)  # for 65,535 runs: one per worker, more where the dead left pieces; memory is taken as it is written
SMALL = 1 << 18  # bytes, below which a copy costs less than a map


@dataclass(frozen=True)
class Handle:
    """A packed value: its code here, its memories in `path` at `offsets`. Elsewhere than on its node it travels as
    `memory`, an array of bytes."""

    code: bytes
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    path: str | None
    memory: np.ndarray | None = None

    def open(self) -> Any:
        """The value; its tensors are views of the mapped file, of what was read of it, or of `memory`."""
        if not self.sizes:
            return unpack(self.code, [])
        if self.memory is not None:
            whole = memoryview(self.memory)
        else:
            with open(self.path, "rb", buffering=0) as file:
                end = self.offsets[-1] + self.sizes[-1]
                if end < SMALL:
                    whole = memoryview(torch.empty(end, dtype=torch.uint8).numpy())  # aligned, as a map is
                    file.readinto(whole)
                else:
                    whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        return unpack(self.code, [whole[a : a + n] for a, n in zip(self.offsets, self.sizes)])


class Region:
    """A file of shared memory, rewritten by each `write`, growing as needed."""

    def __init__(self, prefix: str):
        self.path = folder() / f"{prefix}-{secrets.token_hex(4)}"
        self.map: mmap.mmap | None = None

    def write(self, value: Any) -> Handle:
        """Pack a value into the region; earlier handles become invalid."""
        code, memories = pack(value)
        sizes = [m.nbytes for m in memories]
        offsets, total = aligned_offsets(sizes)
        if total and (self.map is None or len(self.map) < total):
            with open(self.path, "a+b") as file:
                file.truncate(total)
                self.map = mmap.mmap(file.fileno(), total)
        for memory, offset in zip(memories, offsets):
            self.map[offset : offset + memory.nbytes] = memory.cast("B")
        return Handle(code, tuple(offsets), tuple(sizes), str(self.path))

    def copy(self, handle: Handle) -> np.ndarray:
        """The bytes of the region's present value, to send to another node."""
        end = max((a + n for a, n in zip(handle.offsets, handle.sizes)), default=0)
        return np.frombuffer(self.map[:end] if end else b"", np.uint8)


class Queue:
    """Runs of tasks, one per worker and then those of nobody, taken as `runs.take` does. Kept in a shared file under the file's lock,
    which the system releases when its holder dies.

    int64 pairs    (number of what is being worked, runs)  [front, back)  [front, back) ...
    """

    def __init__(self, path: Path):
        self.file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self.file, QUEUE_BYTES)
        self.memory = np.frombuffer(mmap.mmap(self.file, 0), np.int64).reshape(-1, 2)

    def tasks(self, number: int, runs: list[tuple[int, int]], me: int, steal: bool = True) -> Iterator[tuple[int, int]]:
        """Tasks [a, a + 1) of `runs` until there are none left anywhere (or, without stealing, of one's own). Whoever comes first
        with a `number` lays out its runs; who comes with an earlier one gets nothing."""
        with self._locked():
            if self.memory[0, 0] < number:
                self.memory[0] = number, len(runs)
                self.memory[1 : 1 + len(runs)] = runs
        while (task := self._take(number, me, steal)) is not None:
            yield task, task + 1

    def _take(self, number: int, me: int, steal: bool) -> int | None:
        with self._locked():
            current, count = self.memory[0].tolist()
            if current != number:
                return None
            return take(self.memory[1 : 1 + count], me, steal)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self.file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self.file, fcntl.LOCK_UN)

    def close(self) -> None:
        os.close(self.file)
