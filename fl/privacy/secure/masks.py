"""Masks: pseudo-random vectors that a client adds to its integers.

    masked_i = x_i + PRG(self_i) + sum_(j neighbour of i, j > i) PRG(agreed_ij) - sum_(j < i) PRG(agreed_ij)   mod 2^b

The pairwise masks of two clients cancel in the sum. Words are unsigned integers of 32 or 64 bits that wrap around. This
is arithmetic modulo 2^b for every b up to that width; a word on the wire keeps its lowest b bits.
"""

from __future__ import annotations

import functools

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

LARGEST_WIDTH = 62  # bits of a word: sums are read as signed integers of 64 bits


def word_type(width: int) -> type[np.unsignedinteger]:
    """Return the type that holds words of `width` bits.

    >>> word_type(32).__name__, word_type(33).__name__
    ('uint32', 'uint64')
    """
    return np.uint32 if width <= 32 else np.uint64


def expand(key: bytes, count: int, width: int) -> np.ndarray:
    """Return the pseudo-random words of a key: AES-128 in counter mode, (count,).

    Args:
        key: 16 bytes, used for one vector only.
        count: number of words.
        width: bits of a word on the wire.
    """
    dtype = np.dtype(word_type(width))
    size = count * dtype.itemsize
    stream = np.empty(size + 15, np.uint8)  # the cipher asks for room for one more block
    Cipher(AES(key), CTR(bytes(16))).encryptor().update_into(_zeros(size), stream.data)
    return stream[:size].view(dtype)


@functools.lru_cache(maxsize=4)
def _zeros(size: int) -> bytes:
    return bytes(size)


def cut(words: np.ndarray, width: int) -> np.ndarray:
    """Set all but the lowest `width` bits of the words to 0, in place, as on the wire; return the words."""
    words &= words.dtype.type((1 << width) - 1)
    return words


def signed(words: np.ndarray, width: int) -> np.ndarray:
    """Return words modulo 2^width as integers in [-2^(width-1), 2^(width-1)), int64.

    >>> signed(np.array([1, 255, 257], np.uint32), 8).tolist()
    [1, -1, 1]
    """
    wide = words.astype(np.int64) << (64 - width)
    return wide >> (64 - width)
