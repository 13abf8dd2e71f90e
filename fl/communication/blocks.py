"""Kernels of codecs: numbers in blocks that fit a cache, so that a long vector takes little memory beside what it becomes.

    rows (C, n)   -- pieces -->   [c0:c1, a:b] of at most BLOCK numbers
    words(keys, a, b)             64 random bits by key and position: SplitMix64, whose state is a counter
    pack_bits, unpack_bits        numbers of 1 to 8 bits, lowest first, and bytes

Everything is elementwise or by row, so that a row has the bits that it would have alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from fl.tensors import random

BLOCK = 5 << 14  # whole bytes of numbers of any width, of five trits and of buckets up to 2^14


def rows_of(values: Tensor, codec: object) -> np.ndarray:
    """values (*batch, n) as float32 (C, n); anything but floating numbers is refused."""
    if not values.is_floating_point():
        raise ValueError(
            f"{codec} takes floating numbers, got {values.dtype}; put it in front of the codec that made those"
        )
    return values.detach().reshape(values.shape[:-1].numel(), values.shape[-1]).to(torch.float32).contiguous().numpy()


def tensor(array: np.ndarray, like: Tensor) -> Tensor:
    """array (C, m) as a tensor (*batch, m), with the batch axes of `like`."""
    return torch.from_numpy(array.reshape(-1)).reshape(*like.shape[:-1], array.shape[-1])


def refuse(codec: object) -> ValueError:
    return ValueError(
        f"{codec} has no code for numbers that are not finite, and there are some: "
        "use a smaller learning rate or clip, or drop such clients (on_client_error: drop)"
    )


def pieces(rows: int, n: int, block: int = BLOCK) -> Iterator[tuple[slice, slice]]:
    """Cuts (rows, n) into pieces: several whole rows, or a part of one row that begins at a multiple of `block`."""
    if n <= block:
        step = max(1, block // max(n, 1))
        yield from ((slice(c, min(c + step, rows)), slice(0, n)) for c in range(0, rows, step))
    else:
        yield from ((slice(c, c + 1), slice(a, min(a + block, n))) for c in range(rows) for a in range(0, n, block))


def check_finite(x: np.ndarray, codec: object) -> None:
    """A NaN or an infinity anywhere in x (C, n) is refused."""
    for at in pieces(*x.shape):
        piece = x[at]
        if piece.size and not (np.isfinite(piece.max()) and np.isfinite(piece.min())):
            raise refuse(codec)


def largest_magnitude(x: np.ndarray, codec: object) -> np.ndarray:
    """(C,) float32: of each row of x (C, n)."""
    out = np.maximum(x.max(-1, initial=0), -x.min(-1, initial=0))
    if not np.isfinite(out).all():
        raise refuse(codec)
    return out


def row_sums(x: np.ndarray, function=None) -> np.ndarray:
    """(C,) float64: sums of function(x) over each row of x (C, n), in blocks of a row."""
    total = np.zeros(len(x))
    for rows, columns in pieces(*x.shape):
        piece = x[rows, columns] if function is None else function(x[rows, columns])
        total[rows] += np.ascontiguousarray(piece).sum(-1)
    return total


# -- draws ------------------------------------------------------------------------------------------------------------
def words(keys: np.ndarray, first: int, last: int) -> np.ndarray:
    """64 random bits for positions first..last-1 of each key: (C,) -> uint64 (C, last - first)."""
    with np.errstate(over="ignore"):
        word = np.arange(first + 1, last + 1, dtype=np.uint64)
        word *= random.GOLDEN
        word = keys[:, None] + word
        random.mix_in_place(word)
    return word


def dither(keys: np.ndarray, first: int, last: int) -> np.ndarray:
    """Uniform in [-1/2, 1/2) in steps of 2^-16, centred: float32 (C, last - first); `first` is a multiple of 4."""
    drawn = words(keys, first // 4, -(-last // 4)).view(np.int16)[:, : last - first]
    out = drawn * np.float32(2.0**-16)
    out += np.float32(2.0**-17)
    return out


def signs(keys: np.ndarray, first: int, last: int) -> np.ndarray:
    """Random signs, float32 (C, last - first); `first` is a multiple of 64."""
    bits = words(keys, first // 64, -(-last // 64)).view(np.uint8)
    return unpack_signs(bits, last - first)


def normals(key: int, n: int) -> np.ndarray:
    """n standard normal numbers, float32."""
    return np.random.Generator(np.random.Philox(key=int(key))).standard_normal(n, np.float32)


# -- bits -------------------------------------------------------------------------------------------------------------
def packed_bytes(n: int, bits: int) -> int:
    return -(-n * bits // 8)


def pack_bits(numbers: np.ndarray, bits: int) -> np.ndarray:
    """uint8 (C, n) below 2^bits -> (C, ceil(n bits / 8)), lowest bit first."""
    count, n = numbers.shape
    if bits == 8:
        return numbers
    if bits == 1:
        return np.packbits(numbers, axis=-1, bitorder="little")
    if n % 8:
        numbers = np.concatenate([numbers, np.zeros((count, -n % 8), np.uint8)], axis=-1)
    word = np.ascontiguousarray(numbers).view("<u8")
    for width in (8, 16, 32):  # lanes of `width` bits hold width / 8 * bits: two by two they move together
        kept = width // 8 * bits
        low = np.uint64(sum(((1 << kept) - 1) << at for at in range(0, 64, 2 * width)))
        upper = word & (low << np.uint64(width))
        upper >>= np.uint64(width - kept)
        word = word & low
        word |= upper
    out = word.view(np.uint8).reshape(count, -1, 8)[..., :bits].reshape(count, -1)
    return out[:, : packed_bytes(n, bits)]


def unpack_bits(packed: np.ndarray, n: int, bits: int) -> np.ndarray:
    """The inverse of `pack_bits`: uint8 (C, n)."""
    count = len(packed)
    if bits == 8:
        return packed
    if bits == 1:
        return np.unpackbits(packed, axis=-1, count=n, bitorder="little")
    groups = -(-n // 8)
    flat = np.zeros((count, groups * bits), np.uint8)
    flat[:, : packed.shape[1]] = packed
    bytes_ = np.zeros((count, groups, 8), np.uint8)
    bytes_[..., :bits] = flat.reshape(count, groups, bits)
    word = bytes_.reshape(count, -1).view("<u8")
    for width in (32, 16, 8):
        kept = width // 8 * bits
        low = np.uint64(sum(((1 << kept) - 1) << at for at in range(0, 64, 2 * width)))
        upper = word & (low << np.uint64(kept))
        upper <<= np.uint64(width - kept)
        word = word & low
        word |= upper
    return word.view(np.uint8)[:, :n]


_SIGNS = 1.0 - 2.0 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(
    np.float32
)


def unpack_signs(packed: np.ndarray, n: int) -> np.ndarray:
    """Bits (C, B) as float32 (C, n): 0 is +1, 1 is -1."""
    return _SIGNS.take(packed, axis=0).reshape(len(packed), -1)[:, :n]


# -- selection --------------------------------------------------------------------------------------------------------
SAMPLE = 1 << 14


def largest_of(order: np.ndarray, k: int) -> np.ndarray:
    """Positions (C, k), ascending, of the k largest of each row of the integers order (C, n); of equal ones the first."""
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
    """`largest_of` for one row of n numbers of `bits` bits, not negative, that order(slice) gives piece by piece.

    A sample tells about where the k-th is. Those that are not clearly below are few, and among them it is looked for; if
    the sample was misleading or many are equal, digits of the k-th are found by counting, the upper 16 bits first.
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
    """(positions, numbers) of those not below a bar; nothing if there are more than `room`."""
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
    """(the k-th largest number, how many of those equal to it are among the k largest)"""
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
