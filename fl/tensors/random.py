"""Addressed randomness: each draw depends on its address only, never on earlier draws.

    word = hash64(seed, client, participation, "shuffle", position)

An address is a sequence of integers and purpose names. Arrays broadcast, so the draws of many clients are computed at
once and equal those computed one by one. The hash applies the finaliser of SplitMix64 (Steele, Lea, Flood 2014) to each
part in turn. The number of parts enters too, so (1,) and (1, 0) are different streams.
"""

from __future__ import annotations

import functools
import hashlib

import numpy as np
import torch

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_1, MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_LAST = np.uint64(0xFFFFFFFFFFFFFFFF)
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)

Words = np.uint64 | np.ndarray  # one word or an array of them


def hash64(*address: int | str | np.ndarray) -> np.ndarray:
    """Return 64 uniform bits per address, as uint64. The parts of the address broadcast against each other.

    >>> bool(hash64(1, "shuffle") == hash64(1, "shuffle"))
    True
    >>> hash64(1, np.arange(3)).shape
    (3,)
    """
    return hash64_prefix(0, *address)


def hash64_prefix(missing: int, *address: int | str | np.ndarray) -> np.ndarray:
    """Return the state of `hash64` before the last `missing` parts of an address, which a compiled kernel adds."""
    with np.errstate(over="ignore"):
        word = _mix(np.uint64(len(address) + missing) * GOLDEN)
        for part in address:
            word = _mix((word ^ _mix(as_word(part))) + GOLDEN)
    return word  # type: ignore[return-value]  # a np.uint64 acts as an array of shape ()


def _mix(x: Words) -> Words:
    """Apply the finaliser of SplitMix64."""
    x = (x ^ (x >> _30)) * MIX_1
    x = (x ^ (x >> _27)) * MIX_2
    return x ^ (x >> _31)


def as_word(part: int | str | np.ndarray) -> Words:
    """Convert one part of an address to uint64. A name becomes the first 8 bytes of its SHA-256 digest."""
    if isinstance(part, str):
        return _purpose(part)
    if isinstance(part, int):
        return np.uint64(part & 0xFFFFFFFFFFFFFFFF)
    return np.asarray(part).astype(np.uint64)


@functools.cache
def _purpose(name: str) -> np.uint64:
    return np.frombuffer(hashlib.sha256(name.encode()).digest()[:8], "<u8")[0]


def uniform(*address: int | str | np.ndarray) -> np.ndarray:
    """Return uniform doubles in [0, 1), one per address."""
    return (hash64(*address) >> np.uint64(11)) * 2.0**-53


def permutation(n: int, *address: int | str) -> np.ndarray:
    """Return a random order of 0..n-1: the argsort of n hashed positions.

    >>> sorted(permutation(4, 7, "shuffle").tolist())
    [0, 1, 2, 3]
    """
    return np.argsort(hash64(*address, np.arange(n)), kind="stable")


def permutations(sizes: np.ndarray, *address: int | str | np.ndarray) -> np.ndarray:
    """Return one permutation per client as (C, max(sizes)). Array parts of the address have shape (C,).

    Row c starts with `permutation(sizes[c], *address_c)`. Padding follows: sizes[c], sizes[c] + 1, ...
    """
    columns = np.arange(int(sizes.max(initial=0)))
    parts = [p[:, None] if isinstance(p, np.ndarray) else p for p in address]
    words = np.where(columns < sizes[:, None], hash64(*parts, columns), _LAST)
    return np.argsort(words, axis=1, kind="stable")


def numpy_generator(*address: int | str) -> np.random.Generator:
    """Return a NumPy generator, seeded by an address, for draws in bulk."""
    return np.random.Generator(np.random.Philox(key=int(hash64(*address))))


def torch_generator(*address: int | str) -> torch.Generator:
    """Return a torch generator on the CPU, seeded by an address, for draws in bulk."""
    return torch.Generator("cpu").manual_seed(int(hash64(*address)) >> 1)
