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

from fl.trees import aligned, pack, unpack


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
        """The value; its tensors are views of the mapped file (or of `memory`)."""
        if not self.sizes:
            return unpack(self.code, [])
        if self.memory is None:
            with open(self.path, "rb") as file:
                whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        else:
            whole = memoryview(self.memory)
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
        offsets, total = aligned(sizes)
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
    """Runs of tasks, one per worker: each takes from the front of its own and, when that is empty, from the tail of the
    longest other. Kept in a shared file under the file's lock, which the system releases when its holder dies."""

    def __init__(self, path: str, runs: list[tuple[int, int]]):
        """Whoever comes first lays out the `runs` [front, back)."""
        self.file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self.file, fcntl.LOCK_EX)
        if os.fstat(self.file).st_size < 16 * len(runs):
            os.pwrite(self.file, np.array(runs, np.int64).tobytes(), 0)
        fcntl.flock(self.file, fcntl.LOCK_UN)
        self.runs = np.frombuffer(mmap.mmap(self.file, 0), np.int64).reshape(-1, 2)

    def tasks(self, me: int, size: int, steal: bool = True) -> Iterator[tuple[int, int]]:
        """Runs [a, b) of at most `size` tasks until there are none left anywhere (or, without stealing, of one's own)."""
        while (taken := self._take(me, size, steal)) is not None:
            yield taken

    def _take(self, me: int, size: int, steal: bool) -> tuple[int, int] | None:
        fcntl.flock(self.file, fcntl.LOCK_EX)
        try:
            front, back = (int(x) for x in self.runs[me])
            if front == back:
                left = self.runs[:, 1] - self.runs[:, 0]
                victim = int(left.argmax())
                if left[victim] == 0 or not steal:
                    return None
                front, back = int(self.runs[victim, 1] - (left[victim] + 1) // 2), int(self.runs[victim, 1])
                self.runs[victim, 1] = front
            end = min(front + size, back)
            self.runs[me] = end, back
            return front, end
        finally:
            fcntl.flock(self.file, fcntl.LOCK_UN)

    def close(self) -> None:
        os.close(self.file)
