"""Settings of a process that computes: threads, memory, a lock for threads."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Iterator

import torch

from fl.tensors import buffers

# glibc's mallopt: keep the memory that training frees, because the next batch needs it again. Otherwise large tensors
# return to the system after every step and come back page by page (CNN on 32x32x3 images: 6,000 page faults per client,
# 15 % of its time)
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
_KEEP = 1 << 30
_GROW = 64 << 20


def configure_process() -> None:
    """Use one thread, because thread counts change sums, and an allocator that keeps freed memory."""
    torch.set_num_threads(1)
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _KEEP)
        mallopt(_TRIM_THRESHOLD, _KEEP)
        mallopt(_TOP_PAD, _GROW)
        mallopt(_ARENA_MAX, 1)  # threads share one heap: memory that one frees serves the others


_lock, _thread = threading.Lock(), threading.local()


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """Hold a global lock, released inside `release_lock()` blocks.

    Threads that hand over the interpreter's lock at every call into torch spend more time on that than on the calls.
    """
    with _lock:
        _thread.holds_lock = True
        try:
            yield
        finally:
            _thread.holds_lock = False


class release_lock:
    """Context that releases the lock of `exclusive`, if this thread holds it."""

    def __enter__(self) -> None:
        self.held = getattr(_thread, "holds_lock", False)
        if self.held:
            _lock.release()

    def __exit__(self, *_: object) -> None:
        if self.held:
            _lock.acquire()


def trim() -> None:
    """Return unused memory to the system."""
    buffers.clear()
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


# Chunks of other lengths need tensors of other sizes, which do not fit into the holes of earlier ones: 64 clients of a
# causal model of width 768 took 96 MB more than they held at any time
_ROOM = 32 << 20  # bytes; a causal model of 466 MB is trimmed at every 7th chunk
_PAUSE = 0.1  # seconds between two looks; a look takes 0.03 ms, and a chunk of tiny models takes 2 ms


class _Pause:
    """Tells when it is time to look at the memory again."""

    def __init__(self) -> None:
        self.until = 0.0

    @property
    def over(self) -> bool:
        """Whether the last look is long ago; the next one is then now."""
        now = time.perf_counter()
        if now < self.until:
            return False
        self.until = now + _PAUSE
        return True


class MemoryWatch:
    """Returns unused memory to the system when a process grows from chunk to chunk."""

    def __init__(self) -> None:
        self.room, self.limit, self.looks, self.pause = _ROOM, 0, 0, _Pause()

    def after_chunk(self) -> None:
        """Look at the memory, but not after each of many short chunks. Trim if it has grown since the first look.

        It may grow by 32 MB, and by twice as much whenever a trim did not help: the second look after it found more.
        """
        if not self.pause.over:
            return
        now, self.looks = own_memory(), self.looks + 1
        if self.looks == 1:
            self.limit = now + self.room
        elif now > self.limit:
            if self.looks == 2:
                self.room *= 2
            trim()
            self.looks = 0


_SERVER_ROOM = 256 << 20  # bytes; less would cost small models time in each round


class ServerMemory:
    """Returns unused memory of the driver to the system after a round.

    A strategy that computes with tensors of the size of a large model leaves holes of several times its size.
    """

    def __init__(self) -> None:
        self.limit, self.pause = own_memory() + _SERVER_ROOM, _Pause()

    def after_round(self) -> None:
        """Trim if the process has grown by 256 MB, and by a quarter, since the last trim. Short rounds skip it."""
        if self.pause.over and own_memory() > self.limit:
            trim()
            now = own_memory()
            self.limit = now + max(_SERVER_ROOM, now // 4)


def own_memory() -> int:
    """Return the resident bytes of this process that are not of files or shared memory; 0 where /proc has no such."""
    try:
        file = os.open("/proc/self/statm", os.O_RDONLY)
    except OSError:  # not Linux
        return 0
    try:
        _, resident, shared, *_ = map(int, os.read(file, 256).split())
    finally:
        os.close(file)
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
