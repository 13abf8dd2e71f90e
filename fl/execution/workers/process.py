"""How a process that computes for a run is set up."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import weakref
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

# glibc's mallopt: memory that training frees is kept, as the next batch wants it again. Otherwise large tensors go back to the
# system after every step and come back page by page (CNN on 32x32x3 images: 6,000 page faults a client, 15 % of its time)
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8
_KEEP = 1 << 30
_GROW = 64 << 20


def configure_process() -> None:
    """One thread, as thread counts change sums; and an allocator that keeps what it has."""
    torch.set_num_threads(1)
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_THRESHOLD, _KEEP)
        mallopt(_TRIM_THRESHOLD, _KEEP)
        mallopt(_TOP_PAD, _GROW)
        mallopt(_ARENA_MAX, 1)  # threads share one heap: what one of them frees, the others may have


_turn, _thread = threading.Lock(), threading.local()


@contextlib.contextmanager
def exclusive() -> Iterator[None]:
    """One thread at a time, but for what it does `release_lock`. Threads that pass the interpreter's lock to each other at every call into torch
    spend more on passing than on calls."""
    with _turn:
        _thread.has_it = True
        try:
            yield
        finally:
            _thread.has_it = False


@contextlib.contextmanager
def release_lock() -> Iterator[None]:
    """Within, others may have this thread's turn, if it has one."""
    if not getattr(_thread, "has_it", False):
        yield
        return
    _turn.release()
    try:
        yield
    finally:
        _turn.acquire()


_lent: dict[int, list[np.ndarray]] = {}


def pooled_buffer(elements: int) -> Tensor:
    """float32, as `torch.empty`; when nobody refers to it any more, the next who wants as much has it. From the heap it would go back to
    the heap, where what is small and kept takes a bit of it, and the next has to be taken from the system."""
    free = _lent.setdefault(elements, [])
    try:
        memory = free.pop()
    except IndexError:
        memory = torch.empty(elements).numpy()
    lent = memory[:]
    weakref.finalize(lent, free.append, memory).atexit = False
    return torch.from_numpy(lent)


def trim() -> None:
    """Give memory that nothing uses back to the system."""
    _lent.clear()
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
