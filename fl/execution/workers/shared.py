"""Memory that processes on one node share: values written once and mapped by all, and a queue of tasks.

`SharedFiles` are the files of one run on one node. A `Region` holds one value at a time. Its `Handle` takes a few
hundred bytes and opens to the value, with every tensor and array mapped in place. The mapping is private: writing to it
changes no other copy.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import logging
import mmap
import os
import secrets
import shutil
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fl.execution.workers.folders import PrivateFolder, disk_folder, memory_folder
from fl.execution.workers.task_queue import next_task
from fl.tensors.pickling import pack, unpack
from fl.tensors.serialise import aligned_offsets

# room for 65,535 runs: one per worker, and more pieces after workers have died; the system allocates what is written
QUEUE_BYTES = 1 << 20
SMALL = 1 << 18  # bytes, below which a copy is cheaper than a mapping
RESERVE = 4 << 20  # bytes of the memory file system that a `Region` leaves free

log = logging.getLogger(__name__)


class SharedFiles:
    """The files that the processes of a run share on one node, in a private folder.

    Files lie in the memory file system. Once it has no room (Docker gives it 64 MB), files lie on disk.

    Args:
        name: of the folder, see folders.py.
    """

    def __init__(self, name: str):
        self.name = name
        self.folder = PrivateFolder(memory_folder(), name)
        self.disk: PrivateFolder | None = None
        self.queue = self.folder.path / "queue"
        SharedQueue(self.queue).close()  # takes its room before anything else does

    def reserve(self, path: Path, size: int) -> Path:
        """Give a file `size` bytes, and return its path: another one if the file has to lie on disk."""
        try:
            return _reserve(path, size, RESERVE)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            if self.folder.path.parent == disk_folder() or path.parent != self.folder.path:
                raise _no_room(size, path.parent.parent) from None
        path.unlink(missing_ok=True)
        self.disk = self.disk or PrivateFolder(disk_folder(), self.name)
        try:
            moved = _reserve(self.disk.path / path.name, size)
        except OSError:
            raise _no_room(size, disk_folder()) from None
        self.say_if_on_disk(moved)
        return moved

    def say_if_on_disk(self, path: Path) -> None:
        """Warn once per process if a file of any worker lies on disk."""
        if path.parent.parent != self.folder.path.parent and self not in _warned:
            _warned.add(self)
            free = _free(self.folder.path) >> 20
            log.warning(
                "%s has %d MB free, too little: shared values lie in %s, which may be slower. "
                "Docker's option --shm-size gives more",
                self.folder.path.parent,
                free,
                disk_folder(),
            )

    def leave(self) -> None:
        """Stop using the files; other processes may still."""
        for folder in filter(None, (self.folder, self.disk)):
            folder.leave()

    def remove(self) -> None:
        """Delete the files, those of other processes on this node too."""
        self.leave()
        for parent in {memory_folder(), disk_folder()}:
            shutil.rmtree(parent / self.name, ignore_errors=True)


_warned: weakref.WeakSet[SharedFiles] = weakref.WeakSet()


def _reserve(path: Path, size: int, spare: int = 0) -> Path:
    """Give a file of mode 0600 at least `size` bytes; `spare` bytes have to remain.

    Writing to a mapped page for which there is no room would kill the process.
    """
    with open(path, "a+b", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o600)) as file:
        if spare and _free(path) < size - os.fstat(file.fileno()).st_size + spare:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    return path


def _free(path: Path) -> int:
    """Bytes that a file system has room for."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def _no_room(size: int, folder: Path) -> OSError:
    return OSError(
        errno.ENOSPC,
        f"a value of {size >> 20} MB for the workers has no room; free some there, or set TMPDIR to another folder",
        str(folder),
    )


@dataclass(frozen=True)
class Handle:
    """A packed value.

    Attributes:
        code: the pickle without its arrays.
        offsets, sizes: where the arrays lie, in bytes.
        path: the file that holds them on the node that opens the handle.
        memory: their bytes, if they have come from another node.
    """

    code: bytes
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    path: str | None
    memory: np.ndarray | None = None

    @property
    def size(self) -> int:
        """Bytes from the first array to the end of the last one."""
        return self.offsets[-1] + self.sizes[-1] if self.sizes else 0

    def open(self) -> Any:
        """Return the value; its tensors are views of the mapped file, of a copy of it, or of `memory`."""
        if not self.sizes:
            return unpack(self.code, [])
        if self.memory is not None:
            whole = self.memory.data
        else:
            assert self.path is not None
            with io.FileIO(self.path) as file:
                if self.size < SMALL:
                    whole = torch.empty(self.size, dtype=torch.uint8).numpy().data  # aligned, like a mapping
                    file.readinto(whole)
                else:
                    whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        return unpack(self.code, [whole[a : a + n] for a, n in zip(self.offsets, self.sizes)])


def packed(value: Any) -> tuple[Handle, list[memoryview]]:
    """Return a handle without a place, and the memory of the value's arrays, not copied."""
    code, memories = pack(value)
    sizes = [m.nbytes for m in memories]
    return Handle(code, tuple(aligned_offsets(sizes)[0]), tuple(sizes), None), [m.cast("B") for m in memories]


def in_a_row(handle: Handle, memories: Sequence[memoryview]) -> Iterator[memoryview]:
    """Yield the arrays of a value and the gaps between them, `handle.size` bytes."""
    end = 0
    for offset, memory in zip(handle.offsets, memories):
        yield memoryview(bytes(offset - end))
        yield memory
        end = offset + len(memory)


class Region:
    """A file of shared memory, rewritten by each `write` or `fill`, growing as needed."""

    def __init__(self, files: SharedFiles):
        self.files, self.path = files, files.folder.path / secrets.token_hex(4)
        self.map: mmap.mmap | None = None

    def write(self, value: Any) -> Handle:
        """Pack a value into the region; earlier handles become invalid."""
        handle, memories = packed(value)
        whole = self._room(handle.size)
        for memory, offset in zip(memories, handle.offsets):
            whole[offset : offset + len(memory)] = memory
        return replace(handle, path=str(self.path))

    def fill(self, handle: Handle, receive: Callable[[memoryview], None]) -> Handle:
        """Have `receive` write the arrays of another node's value; return its handle here."""
        receive(self._room(handle.size))
        return replace(handle, path=str(self.path))

    def memory(self, handle: Handle) -> memoryview:
        """Return the bytes of the present value."""
        return self._room(handle.size)

    def _room(self, size: int) -> memoryview:
        """Return the first `size` bytes of the region, which grows if it is smaller."""
        if size and (self.map is None or len(self.map) < size):
            self.path = self.files.reserve(self.path, size)
            with open(self.path, "r+b") as file:
                self.map = mmap.mmap(file.fileno(), size)
        return memoryview(b"" if self.map is None else self.map)[:size]


class SharedQueue:
    """The task queue of all workers on a node (see task_queue.py), in a shared file.

    The file's lock protects it; the system releases the lock when its holder dies. The first runs belong to the
    workers; further runs have no owner. The last pairs tell what each worker works on, so that the driver can name the
    client that ended a worker.

        int64 pairs    (attempt, number of runs)  [front, back)  [front, back) ...    (attempt, task) of worker 1, 0
    """

    def __init__(self, path: Path):
        self.file = os.open(_reserve(path, QUEUE_BYTES), os.O_RDWR)
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
            self.memory[-1 - worker] = attempt, task
            yield task, task + 1
        self.memory[-1 - worker] = 0, 0

    def present_task(self, attempt: int, worker: int) -> int | None:
        """Return the task that a worker has taken and not finished in an attempt, or `None`."""
        of, task = self.memory[-1 - worker].tolist()
        return task if of == attempt else None

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
