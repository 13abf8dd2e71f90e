"""Array operations of partitioners: shuffles, groups, classes and quotas.

Sorting distinct 64-bit words that carry the position in their low bits is several times faster than a stable argsort.
"""

from __future__ import annotations

import numpy as np

from fl.tensors import random


def hash_order(words: np.ndarray) -> np.ndarray:
    """Return a shuffle of 0..n-1: sorted by the upper bits of hashed `words` (n,), ties ascending.

    >>> hash_order(np.array([3 << 60, 1 << 60, 2 << 60], np.uint64)).tolist()
    [1, 2, 0]
    """
    low = np.uint64((1 << len(words).bit_length()) - 1)
    return (np.sort(words & ~low | np.arange(len(words), dtype=np.uint64)) & low).astype(np.int64)


def group_by(owners: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Group the positions of `owners` (n,), which are in 0..count-1.

    Returns (order, offsets): order[offsets[c] : offsets[c + 1]] are the positions of owner c, ascending.

    >>> order, offsets = group_by(np.array([1, 0, 1]), 2)
    >>> order.tolist(), offsets.tolist()
    ([1, 0, 2], [0, 1, 3])
    """
    words = owners.astype(np.uint64) << np.uint64(32) | np.arange(len(owners), dtype=np.uint64)
    order = (np.sort(words) & np.uint64(0xFFFFFFFF)).astype(np.int64)
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(owners, minlength=count), out=offsets[1:])
    return order, offsets


def shuffled_groups(owners: np.ndarray, count: int, *address: int | str) -> tuple[np.ndarray, np.ndarray]:
    """Group as `group_by` does, with each group in addressed random order.

    One word holds the owner, the upper bits of a hash and the position.
    """
    n = len(owners)
    place, owner = n.bit_length(), int(count).bit_length()
    words = random.hash64(*address, np.arange(n)) >> np.uint64(owner)
    words &= ~np.uint64((1 << place) - 1)
    words |= owners.astype(np.uint64) << np.uint64(64 - owner)
    words |= np.arange(n, dtype=np.uint64)
    words.sort()
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(owners, minlength=count), out=offsets[1:])
    return (words & np.uint64((1 << place) - 1)).astype(np.int64), offsets


def class_codes(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (classes (K,), codes (R,)): the distinct labels, ascending, and the index of each row's label.

    >>> classes, codes = class_codes(np.array([7, 3, 7]))
    >>> classes.tolist(), codes.tolist()
    ([3, 7], [1, 0, 1])
    """
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
        raise ValueError(
            f"labels: {labels.dtype} {labels.shape} are not one class per row; use a partition without labels"
        )
    low, high = int(labels.min()), int(labels.max())
    if high - low > len(labels):
        return np.unique(labels, return_inverse=True)
    values = labels.astype(np.int64) - low  # few distinct values: counting is faster than sorting
    present = np.bincount(values) > 0
    return (np.flatnonzero(present) + low).astype(labels.dtype), (np.cumsum(present) - 1)[values]


def deal_classes(codes: np.ndarray, counts: np.ndarray, *address: int | str) -> tuple[np.ndarray, np.ndarray]:
    """Give client c counts[c, k] random rows of class k, in random order; return (indices, offsets).

    Args:
        codes: (R,) class of each row, in 0..K-1.
        counts: (N, K) int64. Rows beyond the sum of the counts are left out.
        *address: Address of the random order.
    """
    clients, classes = counts.shape
    by_class, ends = shuffled_groups(codes, classes, *address, "deal")
    unused = np.diff(ends) - counts.sum(0)
    if counts.size and (counts.min() < 0 or unused.min() < 0):
        raise ValueError(f"counts: class {int(unused.argmin())} has {-int(unused.min())} rows too few")
    shares = np.concatenate([counts, unused[None]]).T.ravel()  # per class: each client's rows, then the unused ones
    owners = np.empty(len(codes), np.int64)
    owners[by_class] = np.repeat(np.tile(np.arange(clients + 1), classes), shares)
    order, offsets = shuffled_groups(owners, clients + 1, *address, "mix")
    return order[: offsets[clients]], offsets[: clients + 1]


def apportion(weights: np.ndarray, total: int) -> np.ndarray:
    """Split `total` into N integers in proportion to `weights` (N,), by the method of largest remainders.

    >>> apportion(np.array([1.0, 1.0, 2.0]), 5).tolist()
    [1, 1, 3]
    """
    exact = weights / weights.sum() * total
    sizes = np.floor(exact).astype(np.int64)
    sizes[np.argsort(sizes - exact, kind="stable")[: total - int(sizes.sum())]] += 1
    return sizes


def rank_in_group(groups: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Return (n,) int64: the rank of each element in its group (n,), from 0, ascending in `key` (n,), ties by position.

    >>> rank_in_group(np.array([0, 1, 0]), np.array([5, 1, 2])).tolist()
    [1, 0, 0]
    """
    order = np.lexsort((key, groups))
    first = np.concatenate([[0], np.flatnonzero(np.diff(groups[order])) + 1])
    found = np.empty(len(order), np.int64)
    found[order] = np.arange(len(order)) - np.repeat(first, np.diff([*first, len(order)]))
    return found


def hashed_rank(groups: np.ndarray, count: int, words: np.ndarray) -> np.ndarray:
    """Return `rank_in_group` by hashed `words` (n,), several times faster; `groups` (n,) are in 0..count-1.

    Only the upper bits of the words count; ties are broken by position.

    >>> hashed_rank(np.array([0, 1, 0]), 2, np.array([5 << 60, 1 << 60, 2 << 60], np.uint64)).tolist()
    [1, 0, 0]
    """
    shuffled = hash_order(words)
    order, offsets = group_by(groups[shuffled], count)
    found = np.empty(len(groups), np.int64)
    found[shuffled[order]] = np.arange(len(groups)) - np.repeat(offsets[:-1], np.diff(offsets))
    return found
