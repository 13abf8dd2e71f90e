"""Addressed randomness: each draw depends on its address only, never on earlier draws.

    word = hash64(seed, client, participation, "shuffle", position)

An address is a sequence of integers and purpose names. Arrays broadcast, so the draws of many clients are computed at
once and equal those computed one by one. The hash applies the finaliser of SplitMix64 (Steele, Lea, Flood 2014) to each
part in turn. The number of parts enters too, so (1,) and (1, 0) are different streams.
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
_MASK, _GOLDEN, _MIX_1, _MIX_2 = (int(word) for word in (_LAST, GOLDEN, MIX_1, MIX_2))
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)


def hash64(*address: int | str | np.ndarray) -> np.ndarray:
    """Return 64 uniform bits per address, as uint64. The parts of the address broadcast against each other.

    >>> bool(hash64(1, "shuffle") == hash64(1, "shuffle"))
    True
    >>> hash64(1, np.arange(3)).shape
    (3,)
    """
    return hash64_prefix(0, *address)


def hash64_prefix(missing: int, *address: int | str | np.ndarray) -> np.ndarray:
    """Return the state of `hash64` before the last `missing` parts of an address. Add each of them with `chained`.

    >>> with np.errstate(over="ignore"):
    ...     bool(chained(hash64_prefix(1, 7, "shuffle"), np.uint64(3)) == hash64(7, "shuffle", 3))
    True
    """
    word = _mixed((len(address) + missing) * _GOLDEN & _MASK)
    for i, part in enumerate(address):
        if not isinstance(part, (int, str, np.integer)):
            break
        word = _chained(word, part)
    else:
        return np.asarray(word, np.uint64)[()]
    words: Any = np.uint64(word)
    with np.errstate(over="ignore"):
        for part in address[i:]:
            words = chained(words, as_word(part))
    return words


def last_word(prefix: np.ndarray, part: int) -> int:
    """Return the hash of a whole address from its prefix and its last part, as an int.

    >>> last_word(hash64_prefix(1, 7, "shuffle"), 3) == int(hash64(7, "shuffle", 3))
    True
    """
    return _chained(int(prefix), part)


def _chained(word: int, part: int | str | np.integer[Any]) -> int:
    """Do what `chained` does with Python's integers, which are quicker than NumPy's for single words."""
    number = int(_purpose(part)) if isinstance(part, str) else int(part) & _MASK
    return _mixed((word ^ _mixed(number)) + _GOLDEN & _MASK)


def _mixed(x: int) -> int:
    x = (x ^ (x >> 30)) * _MIX_1 & _MASK
    x = (x ^ (x >> 27)) * _MIX_2 & _MASK
    return x ^ (x >> 31)


def chained(word: Any, part: Any) -> Any:
    """Extend a hash by one more part of the address, a uint64 or an array."""
    return mix((word ^ mix(part)) + GOLDEN)


def mix(x: Any) -> Any:
    """Apply the finaliser of SplitMix64 to a uint64 or an array. Compiled training compiles this function, too."""
    x = (x ^ (x >> _30)) * MIX_1
    x = (x ^ (x >> _27)) * MIX_2
    return x ^ (x >> _31)


def random_words(keys: np.ndarray, first: int, last: int) -> np.ndarray:
    """Return words `first` .. `last - 1` of the SplitMix64 stream of each key: uint64 (C,) -> uint64 (C, last - first).

    The state of SplitMix64 is a counter, so a part of a stream costs no more than its length. Use it for bulk draws;
    `hash64` takes longer addresses.

    >>> random_words(np.array([1234567], np.uint64), 0, 2).tolist()  # the published test vector
    [[6457827717110365317, 3203168211198807973]]
    """
    with np.errstate(over="ignore"):
        words = keys[:, None] + np.arange(first + 1, last + 1, dtype=np.uint64) * GOLDEN
        mix_in_place(words)
    return words


def mix_in_place(words: np.ndarray) -> None:
    """Apply `mix` to a uint64 array in place. It needs one more array of the same size."""
    spare = words >> _30
    words ^= spare
    words *= MIX_1
    np.right_shift(words, _27, out=spare)
    words ^= spare
    words *= MIX_2
    np.right_shift(words, _31, out=spare)
    words ^= spare


def as_word(part: int | str | np.ndarray) -> Any:
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
