"""Selection: find the k largest of many integers without sorting all of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fl.communication.blocks import BLOCK

SAMPLE = 1 << 14  # numbers in the sample of a long row


def largest_of(order: np.ndarray, k: int) -> np.ndarray:
    """Find the k largest of each row of the integers order (C, n): ascending positions (C, k); of equal ones the first.

    >>> largest_of(np.array([[3, 7, 7, 1, 7]]), 2).tolist()
    [[1, 2]]
    """
    count, n = order.shape
    if k == 0 or k == n:
        return np.tile(np.arange(k), (count, 1))
    least = np.partition(order, n - k, axis=-1)[:, n - k, None]
    keep = order > least
    room = k - np.count_nonzero(keep, axis=-1)
    equal = order == least
    if (np.count_nonzero(equal, axis=-1) > room).any():
        equal &= np.cumsum(equal, axis=-1, dtype=np.int64) <= room[:, None]
    keep |= equal
    return np.flatnonzero(keep).reshape(count, k) - n * np.arange(count)[:, None]


def largest_of_long(order: Callable[[slice], np.ndarray], n: int, k: int, bits: int) -> np.ndarray:
    """Find the k largest of one long row: n non-negative integers of `bits` bits, which order(slice) returns in pieces.

    A sample gives a lower limit for the k-th largest. Usually few numbers reach it, and `largest_of` chooses among
    them. If many reach it (a misleading sample, or many equal numbers), the digits of the k-th largest are found by
    counting, the upper 16 bits first.
    """
    sample = np.sort(order(slice(0, n, max(1, n // SAMPLE))))
    rank = k / n * len(sample)
    above = math.ceil(rank + 4 * math.sqrt(rank * (1 - k / n)) + 8)
    if above < len(sample):
        places, numbers = _at_least(order, n, sample[len(sample) - above], 2 * k + BLOCK)
        if len(places) >= k:
            return places[largest_of(numbers[None], k)[0]]
    least, room = _kth(order, n, k, bits)
    found = []
    for a in range(0, n, BLOCK):
        piece = order(slice(a, min(a + BLOCK, n)))
        equal = np.flatnonzero(piece == least)[:room]
        room -= len(equal)
        found.append(np.sort(np.concatenate([np.flatnonzero(piece > least), equal])) + a)
    return np.concatenate(found)


def _at_least(order: Callable[[slice], np.ndarray], n: int, bar: int, room: int) -> tuple[np.ndarray, np.ndarray]:
    """(positions, numbers) of the numbers that are at least `bar`; empty arrays if there are more than `room`."""
    places, numbers, count = [], [], 0
    for a in range(0, n, BLOCK):
        piece = order(slice(a, min(a + BLOCK, n)))
        here = np.flatnonzero(piece >= bar)
        count += len(here)
        if count > room:
            return here[:0], piece[:0]
        places.append(here + a)
        numbers.append(piece[here])
    return np.concatenate(places), np.concatenate(numbers)


def _kth(order: Callable[[slice], np.ndarray], n: int, k: int, bits: int) -> tuple[int, int]:
    """(the k-th largest number, count of numbers equal to it among the k largest)."""
    known, room = 0, k
    for shift in range((bits - 1) // 16 * 16, -1, -16):
        counts = np.zeros(1 << 16, np.int64)
        for a in range(0, n, BLOCK):
            piece = order(slice(a, min(a + BLOCK, n)))
            digits = (piece >> shift).astype(np.int64)
            counts += np.bincount(digits[digits >> 16 == known] & 0xFFFF, minlength=1 << 16)
        from_top = np.cumsum(counts[::-1])
        digit = 0xFFFF - int(np.searchsorted(from_top, room))
        room -= int(from_top[0xFFFF - digit] - counts[digit])
        known = known << 16 | digit
    return known, room
