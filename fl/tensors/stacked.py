"""Functions of stacked vectors (n, P) at each coordinate: order statistics, and sums in the order of a binary tree.

Large stacks on the CPU are worked on by machine code in `torch.get_num_threads()` threads, whose number changes no bit.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

FEW = 1 << 18  # numbers that torch sorts before machine code is loaded, which takes half a second
FEW_LOADED = 1 << 10  # and afterwards
FEW_SUMMED = 1 << 22  # numbers that torch adds before machine code is loaded
MACHINE_CODE = "fl.execution.training.native.columns"
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def order_statistics(rows: Tensor, start: int, stop: int) -> Tensor:
    """Return the values of ranks start, ..., stop - 1 in each column: (n, P) -> (stop - start, P), ascending.

    NaN comes after infinity. Large matrices on the CPU are sorted by a sorting network (Batcher 1968,
    doi:10.1145/1468075.1468121), whose time does not depend on the values.

    >>> order_statistics(torch.tensor([[3.0, 1.0], [1.0, 5.0], [2.0, 4.0]]), 1, 3)
    tensor([[2., 4.],
            [3., 5.]])

    Args:
        rows: numbers; machine code sorts floats only.
        start: the first rank, from 0.
        stop: the rank after the last one, at most n.

    Raises:
        ValueError: there are no such ranks.
    """
    rows = _with_ranks(rows, start, stop)
    if not _sorts_fast(rows):
        return rows.sort(0).values[start:stop]
    from fl.execution.training.native import columns

    values, limits = _as_integers(rows)
    out = rows.new_empty(stop - start, rows.shape[1])
    found = out.view(INTEGERS[out.element_size()]).numpy()
    comparisons = network(len(rows), start, stop)
    _in_threads(rows.shape[1], lambda a, b: columns.order_statistics(values, comparisons, start, limits, a, b, found))
    return out


def means_of_ranks(rows: Tensor, start: int, stop: int) -> Tensor:
    """Return the mean of the values of ranks start, ..., stop - 1 in each column: (n, P) -> (P,).

    The values are added in float64, in ascending order, so the bits depend neither on the order of the rows nor on the
    other columns. Sorted as by `order_statistics`, in memory that does not grow with the number of ranks.

    >>> means_of_ranks(torch.tensor([[3.0, 1.0], [1.0, 5.0], [2.0, 4.0]]), 1, 3)
    tensor([2.5000, 4.5000])

    Args:
        rows: floats.
        start: the first rank, from 0.
        stop: the rank after the last one, at most n.

    Raises:
        ValueError: there are no such ranks.
    """
    rows = _with_ranks(rows, start, stop)
    if not (_sorts_fast(rows) and rows.dtype in (torch.float32, torch.float64)):
        total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
        for values in order_statistics(rows, start, stop):
            total += values
        return (total / (stop - start)).to(rows.dtype)
    from fl.execution.training.native import columns

    values, limits = _as_integers(rows)
    out, comparisons, ranks = rows.new_empty(rows.shape[1]), network(len(rows), start, stop), stop - start
    _in_threads(
        rows.shape[1], lambda a, b: columns.means_of_ranks(values, comparisons, start, ranks, limits, a, b, out.numpy())
    )
    return out


def _with_ranks(rows: Tensor, start: int, stop: int) -> Tensor:
    """Return the rows without gradients, if they have ranks start, ..., stop - 1."""
    if not 0 <= start < stop <= len(rows):
        raise ValueError(f"ranks {start} to {stop}: not 0 <= start < stop <= {len(rows)}, the number of rows")
    return rows.detach()


def _sorts_fast(rows: Tensor) -> bool:
    """Whether machine code sorts the columns: of a large matrix of floats on the CPU."""
    few = FEW_LOADED if MACHINE_CODE in sys.modules else FEW
    return rows.device.type == "cpu" and rows.numel() >= few and rows.is_floating_point()


def _as_integers(rows: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return floats viewed as integers, (n, P), and their largest integer and infinity, (2,)."""
    kind = INTEGERS[rows.element_size()]
    limits = torch.tensor([torch.nan, torch.inf], dtype=rows.dtype).view(kind)
    limits[0] = torch.iinfo(kind).max
    return rows.contiguous().view(kind).numpy(), limits.numpy()


def sums_fast(stack: Tensor) -> bool:
    """Whether `weighted_sum` takes a stack (n, ...): a large one of float32 or float64 on the CPU."""
    known = stack.dtype in (torch.float32, torch.float64) and stack.is_contiguous()
    return known and stack.device.type == "cpu" and stack.numel() >= FEW_SUMMED


def weighted_sum(stack: Tensor, weights: Tensor) -> Tensor:
    """Return sum_i weights_i stack_i: (n, ...), (n,) -> (...), added in the order of `fl.method.fold.Fold`.

    The memory of the stack is read once, which takes half of the time of separate products and sums.
    """
    from fl.execution.training.native import columns

    out = torch.empty_like(stack[0])
    arrays = stack.view(len(stack), -1).numpy(), weights.to(stack.dtype).numpy()
    _in_threads(out.numel(), lambda a, b: columns.weighted_sum(*arrays, a, b, out.view(-1).numpy()))
    return out


def _in_threads(columns: int, part: Callable[[int, int], None]) -> None:
    """Call part(first, last) for ranges of columns, one per thread."""
    bounds = [int(bound) for bound in np.linspace(0, columns, torch.get_num_threads() + 1)]
    others = [_pool().submit(part, first, last) for first, last in zip(bounds[1:], bounds[2:])]
    part(bounds[0], bounds[1])
    for other in others:
        other.result()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="fl-columns")


@functools.lru_cache(maxsize=64)
def network(n: int, start: int, stop: int) -> np.ndarray:
    """Return the comparisons that bring the values of ranks start, ..., stop - 1 of n to their places.

    Pairs i < j in order, (comparisons, 2): Batcher's merge exchange (Knuth, The Art of Computer Programming, volume 3,
    algorithm 5.2.2M), without the comparisons that no wanted rank depends on.

    >>> network(3, 0, 3).tolist()
    [[0, 2], [0, 1], [1, 2]]
    >>> network(3, 0, 1).tolist()
    [[0, 2], [0, 1]]
    """
    pairs: list[tuple[int, int]] = []
    top = 1 << max(0, (n - 1).bit_length() - 1)
    p = top if n > 1 else 0
    while p:
        q, r, distance = top, 0, p
        while distance:
            pairs += [(i, i + distance) for i in range(n - distance) if i & p == r]
            distance, r, q = q - p, p, q >> 1
        p >>= 1
    needed, kept = set(range(start, stop)), []
    for pair in reversed(pairs):
        if not needed.isdisjoint(pair):
            needed.update(pair)
            kept.append(pair)
    return np.array(kept[::-1], np.int64).reshape(-1, 2)
