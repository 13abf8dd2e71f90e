"""Large arrays whose memory is used again.

In the heap, small objects that are kept would take pieces of freed memory, and the next large array would be new memory
from the system, which comes page by page (0.25 ms per MB).
"""

from __future__ import annotations

import weakref

import numpy as np
import torch
from torch import Tensor

SMALL = 1 << 12  # elements; smaller arrays find their place in the heap quicker
_free: dict[int, list[np.ndarray]] = {}


def pooled_buffer(elements: int) -> Tensor:
    """Return an uninitialised float32 tensor. Its memory is free again when nothing refers to the tensor."""
    if elements < SMALL:
        return torch.empty(elements, dtype=torch.float32, device="cpu")
    free = _free.setdefault(elements, [])
    try:
        memory = free.pop()
    except IndexError:
        memory = torch.empty(elements, dtype=torch.float32, device="cpu").numpy()
    view = memory[:]
    weakref.finalize(view, free.append, memory).atexit = False
    return torch.from_numpy(view)


def clear() -> None:
    """Give up the memory that is free."""
    _free.clear()
