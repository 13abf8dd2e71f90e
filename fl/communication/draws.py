"""Random numbers of codecs, as functions of key and position.

Any range of positions can be drawn by itself, so long vectors are processed block by block.
"""

from __future__ import annotations

import numpy as np

from fl.communication.bits import unpack_signs
from fl.tensors.random import random_words


def dither(keys: np.ndarray, first: int, last: int) -> np.ndarray:
    """Draw uniform numbers in [-1/2, 1/2) in steps of 2^-16, with mean zero: float32 (C, last - first).

    `first` is a multiple of 4, because one 64-bit word gives four numbers.
    """
    drawn = random_words(keys, first // 4, -(-last // 4)).view(np.int16)[:, : last - first]
    out = drawn * np.float32(2.0**-16)
    out += np.float32(2.0**-17)
    return out


def random_signs(keys: np.ndarray, first: int, last: int) -> np.ndarray:
    """Draw signs, float32 (C, last - first) of -1 and 1; `first` is a multiple of 64."""
    bits = random_words(keys, first // 64, -(-last // 64)).view(np.uint8)
    return unpack_signs(bits, last - first)


def normals(key: int, n: int) -> np.ndarray:
    """Draw n standard normal numbers, float32."""
    return np.random.Generator(np.random.Philox(key=int(key))).standard_normal(n, np.float32)
