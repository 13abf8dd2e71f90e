"""Memory that processes on one node share: values written once and mapped by all, and a queue of tasks.

Files lie in the node's memory file system. A `Region` holds one value at a time. Its `Handle` takes a few hundred bytes
and opens to the value, with every tensor and array mapped in place. The mapping is private: writing to it changes no
other copy.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
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

from fl.execution.workers.task_queue import next_task
from fl.tensors.pickling import pack, unpack
from fl.tensors.serialise import aligned_offsets


def shared_folder() -> Path:
    """Return the folder of shared files: in memory if the system has a file system for it."""
    memory = Path("/dev/shm")
    return memory if os.access(memory, os.W_OK) else Path(tempfile.gettempdir())


def new_prefix() -> str:
    """Return a new name for a run's files, with the process id; remove files of processes that have ended."""
    for path in shared_folder().glob("fl-*"):
        owner = re.match(r"fl-(\d+)-", path.name)
        if owner and not os.path.exists(f"/proc/{owner[1]}"):
            with contextlib.suppress(OSError):
                path.unlink()
    return f"fl-{os.getpid()}-{secrets.token_hex(4)}"


def remove(prefix: str) -> None:
    """Delete all files of a run."""
    for path in shared_folder().glob(f"{prefix}-*"):
        path.unlink(missing_ok=True)


# room for 65,535 runs: one per worker, and more pieces after workers have died; the system allocates what is written
QUEUE_BYTES = 1 << 20
SMALL = 1 << 18  # bytes, below which a copy is cheaper than a mapping


@dataclass(frozen=True)
class Handle:
    """A packed value.

    Attributes:
        code: the pickle without its arrays.
        offsets, sizes: where the arrays lie, in bytes.
        path: the file that holds them on the value's own node.
        memory: their bytes, on other nodes.
    """

    code: bytes
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    path: str | None
    memory: np.ndarray | None = None

    def open(self) -> Any:
        """Return the value; its tensors are views of the mapped file, of a copy of it, or of `memory`."""
        if not self.sizes:
            return unpack(self.code, [])
        if self.memory is not None:
            whole = self.memory.data
        else:
            assert self.path is not None
            with io.FileIO(self.path) as file:
                end = self.offsets[-1] + self.sizes[-1]
                if end < SMALL:
                    whole = torch.empty(end, dtype=torch.uint8).numpy().data  # aligned, like a mapping
                    file.readinto(whole)
                else:
                    whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        return unpack(self.code, [whole[a : a + n] for a, n in zip(self.offsets, self.sizes)])


class Region:
    """A file of shared memory, rewritten by each `write`, growing as needed."""

    def __init__(self, prefix: str):
        self.path = shared_folder() / f"{prefix}-{secrets.token_hex(4)}"
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
            assert self.map is not None  # `total` is not 0
            self.map[offset : offset + memory.nbytes] = memory.cast("B")
        return Handle(code, tuple(offsets), tuple(sizes), str(self.path))

    def copy(self, handle: Handle) -> np.ndarray:
        """Return the bytes of the present value, to send to another node."""
        end = max((a + n for a, n in zip(handle.offsets, handle.sizes)), default=0)
        return np.frombuffer(self.map[:end] if self.map is not None and end else b"", np.uint8)


class SharedQueue:
    """The task queue of all workers on a node (see task_queue.py), in a shared file.

    The file's lock protects it; the system releases the lock when its holder dies. The first runs belong to the
    workers; further runs have no owner.

        int64 pairs    (attempt, number of runs)  [front, back)  [front, back) ...
    """

    def __init__(self, path: Path):
        self.file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self.file, QUEUE_BYTES)
        self.memory = np.frombuffer(mmap.mmap(self.file, 0), np.int64).reshape(-1, 2)

    def tasks(
        self, attempt: int, runs: list[tuple[int, int]], worker: int, steal: bool = True
    ) -> Iterator[tuple[int, int]]:
        """Yield runs [a, a + 1) until no task is left (without `steal`, none of the worker's own).

        The first worker with a new `attempt` writes its `runs`; a worker with an earlier attempt gets no task.
        """
        with self._locked():
            if self.memory[0, 0] < attempt:
                self.memory[0] = attempt, len(runs)
                self.memory[1 : 1 + len(runs)] = runs
        while (task := self._next(attempt, worker, steal)) is not None:
            yield task, task + 1

    def _next(self, attempt: int, worker: int, steal: bool) -> int | None:
        with self._locked():
            current, count = self.memory[0].tolist()
            if current != attempt:
                return None
            return next_task(self.memory[1 : 1 + count], worker, steal)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self.file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self.file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file."""
        os.close(self.file)
