"""Bits: pack numbers of 1 to 8 bits into bytes."""

from __future__ import annotations

import numpy as np


def packed_bytes(n: int, bits: int) -> int:
    """Return the bytes of n packed numbers of `bits` bits.

    >>> packed_bytes(10, 3)
    4
    """
    return -(-n * bits // 8)


def pack_bits(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Pack numbers uint8 (C, n) below 2^bits to bytes (C, ceil(n bits / 8)), lowest bit first.

    >>> pack_bits(np.array([[1, 2, 3]], np.uint8), 2).tolist()  # 1 | 2 << 2 | 3 << 4
    [[57]]
    """
    count, n = numbers.shape
    if bits == 8:
        return numbers
    if bits == 1:
        return np.packbits(numbers, axis=-1, bitorder="little")
    if n % 8:
        numbers = np.concatenate([numbers, np.zeros((count, -n % 8), np.uint8)], axis=-1)
    word = np.ascontiguousarray(numbers).view("<u8")
    for width in (8, 16, 32):  # lanes of `width` bits hold width / 8 * bits bits; join neighbouring lanes
        used = width // 8 * bits
        low = np.uint64(sum(((1 << used) - 1) << at for at in range(0, 64, 2 * width)))
        upper = word & (low << np.uint64(width))
        upper >>= np.uint64(width - used)
        word = word & low
        word |= upper
    out = word.view(np.uint8).reshape(count, -1, 8)[..., :bits].reshape(count, -1)
    return out[:, : packed_bytes(n, bits)]


def unpack_bits(packed: np.ndarray, n: int, bits: int) -> np.ndarray:
    """Undo `pack_bits`: uint8 (C, n)."""
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
        used = width // 8 * bits
        low = np.uint64(sum(((1 << used) - 1) << at for at in range(0, 64, 2 * width)))
        upper = word & (low << np.uint64(used))
        upper <<= np.uint64(width - used)
        word = word & low
        word |= upper
    return word.view(np.uint8)[:, :n]


_SIGNS = 1.0 - 2.0 * np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(
    np.float32
)


def unpack_signs(packed: np.ndarray, n: int) -> np.ndarray:
    """Convert bits, packed as uint8 (C, B), to signs float32 (C, n): 0 is +1, 1 is -1."""
    return _SIGNS.take(packed, axis=0).reshape(len(packed), -1)[:, :n]
