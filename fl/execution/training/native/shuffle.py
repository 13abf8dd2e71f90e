"""The order of a client's samples in an epoch: that of `fl.tensors.random.permutation`.

SplitMix64 has one home, `fl.tensors.random.mix`; numba compiles that function here.
"""

from __future__ import annotations

import numpy as np

from fl.execution.training.native.jit import inlined, owner
from fl.tensors import random

COUNTED = 64  # up to this number of samples, counting smaller hashes is faster than sorting

_mix = inlined(random.mix)


@inlined
def chained(word: np.uint64, number: int) -> np.uint64:
    """`random.chained`: extend a hash by one part of the address."""
    return _mix((word ^ _mix(np.uint64(number))) + random.GOLDEN)


@owner
def write_order(word: np.uint64, n: int, shuffled: bool, keys: np.ndarray, order: np.ndarray) -> None:
    """Write 0..n-1 into `order`, sorted by their hashes if `shuffled`. `word` is the hash without the position."""
    smaller = 0 if shuffled and n <= COUNTED else -1
    for i in range(n):
        order[i] = i
        keys[i] = chained(word, i)
    if smaller == 0:
        for i in range(n):
            rank = 0
            for j in range(n):
                rank += keys[j] < keys[i]
            order[rank] = i
            smaller += rank
    if shuffled and smaller != n * (n - 1) // 2:  # n is above COUNTED, or two hashes are equal
        order[:n] = np.argsort(keys[:n], kind="mergesort")
