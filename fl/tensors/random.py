"""Addressed randomness: every draw is a function of where it is used, never of what was drawn before.

    word = hash64(seed, client, participation, "shuffle", position)

An address is a sequence of integers and purpose names; arrays broadcast, so the draws of many clients are computed at
once and equal those computed singly. The hash is the finaliser of SplitMix64 (Steele, Lea, Flood 2014), chained over
the parts of the address; the number of parts enters, so that (1,) and (1, 0) are different streams.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Any

import numpy as np
import torch

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_1, MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_LAST = np.uint64(0xFFFFFFFFFFFFFFFF)
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)


def hash64(*address: int | str | np.ndarray) -> np.ndarray:
    """64 uniform bits for an address; parts broadcast against each other. Returns uint64 of the broadcast shape."""
    return unfinished(0, *address)


def unfinished(missing: int, *address: int | str | np.ndarray) -> np.ndarray:
    """Hash of an address whose last `missing` parts are not known yet. The caller adds each of them with `chained`.

    >>> with np.errstate(over="ignore"):
    ...     bool(chained(unfinished(1, 7, "shuffle"), np.uint64(3)) == hash64(7, "shuffle", 3))
    True
    """
    with np.errstate(over="ignore"):
        word = mix(np.uint64(len(address) + missing) * GOLDEN)
        for part in address:
            word = chained(word, as_word(part))
    return word


def chained(word: Any, part: Any) -> Any:
    """Extend a hash by one more part of the address, a uint64."""
    return mix((word ^ mix(part)) + GOLDEN)


def mix(x: Any) -> Any:
    """Finaliser of SplitMix64, for a uint64 or an array. Compiled training compiles it, too (native/shuffle.py)."""
    x = (x ^ (x >> _30)) * MIX_1
    x = (x ^ (x >> _27)) * MIX_2
    return x ^ (x >> _31)


def random_words(keys: np.ndarray, first: int, last: int) -> np.ndarray:
    """Words `first` .. `last - 1` of the SplitMix64 stream of each key: uint64 (C,) -> uint64 (C, last - first).

    The state of SplitMix64 is a counter, so a part of a stream costs no more than its length. This is the generator for
    bulk draws; `hash64` takes longer addresses.

    >>> random_words(np.array([1234567], np.uint64), 0, 2).tolist()  # the published test vector
    [[6457827717110365317, 3203168211198807973]]
    """
    with np.errstate(over="ignore"):
        words = keys[:, None] + np.arange(first + 1, last + 1, dtype=np.uint64) * GOLDEN
        mix_in_place(words)
    return words


def mix_in_place(words: np.ndarray) -> None:
    """`mix` that overwrites a uint64 array and needs one more array of its size."""
    spare = words >> _30
    words ^= spare
    words *= MIX_1
    np.right_shift(words, _27, out=spare)
    words ^= spare
    words *= MIX_2
    np.right_shift(words, _31, out=spare)
    words ^= spare


def as_word(part: int | str | np.ndarray) -> Any:
    """Part of an address as uint64."""
    if isinstance(part, str):
        return _purpose(part)
    if isinstance(part, int):
        return np.uint64(part & 0xFFFFFFFFFFFFFFFF)
    return np.asarray(part).astype(np.uint64)


@functools.cache
def _purpose(name: str) -> np.uint64:
    return np.frombuffer(hashlib.sha256(name.encode()).digest()[:8], "<u8")[0]


def uniform(*address: int | str | np.ndarray) -> np.ndarray:
    """Uniform doubles in [0, 1), one per address."""
    return (hash64(*address) >> np.uint64(11)) * 2.0**-53


def permutation(n: int, *address: int | str) -> np.ndarray:
    """A random order of 0..n-1: the argsort of hashed positions."""
    return np.argsort(hash64(*address, np.arange(n)), kind="stable")


def permutations(sizes: np.ndarray, *address: int | str | np.ndarray) -> np.ndarray:
    """Row c is `permutation(sizes[c], *address_c)`, then the pads sizes[c], sizes[c]+1, ...; (C, max(sizes)).

    Array parts of the address have shape (C,).
    """
    columns = np.arange(int(sizes.max(initial=0)))
    parts = [p[:, None] if isinstance(p, np.ndarray) else p for p in address]
    words = np.where(columns < sizes[:, None], hash64(*parts, columns), _LAST)
    return np.argsort(words, axis=1, kind="stable")


def numpy_generator(*address: int | str) -> np.random.Generator:
    """A NumPy generator for bulk draws at an address."""
    return np.random.Generator(np.random.Philox(key=int(hash64(*address))))


def torch_generator(*address: int | str) -> torch.Generator:
    """A torch generator for bulk noise at an address."""
    return torch.Generator("cpu").manual_seed(int(hash64(*address)) >> 1)
