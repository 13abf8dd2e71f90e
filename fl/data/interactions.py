"""Interactions of users and items: held rows by time, and null data that have the same sizes and no structure.

Arrays are (N,): `users` ascending, the rows of a user in the order of time.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal, TypeAlias

import numpy as np

from fl.data.dataset import Arrays, Dataset
from fl.data.grouping import rank_in_group
from fl.tensors import random

TRIES = 100_000  # random rows that a row tries to exchange its item with
Shuffle: TypeAlias = Literal["uniform", "permuted"]


def held_by_time(users: np.ndarray) -> np.ndarray:
    """Return what each row is for, int8: the last row of a user is for tests (2), the one before for validation (1).

    A user with two rows has no validation row, one with a single row keeps it for training.

    >>> held_by_time(np.array([0, 0, 0, 1, 1, 2])).tolist()
    [0, 1, 2, 0, 2, 0]
    """
    sizes = np.bincount(users)[users]
    from_end = sizes - 1 - rank_in_group(users, np.arange(len(users)))
    held = np.where((from_end == 0) & (sizes > 1), 2, 0)
    return np.where((from_end == 1) & (sizes > 2), 1, held).astype(np.int8)


def uniform_items(users: np.ndarray, items: int, *address: int | str) -> np.ndarray:
    """Return random items (N,): each user takes as many different ones as it has rows, all equally likely."""
    found = np.empty(len(users), np.int64)
    ends = np.cumsum(np.bincount(users))
    draw = random.numpy_generator(*address)
    for start, end in zip([0, *ends], ends):
        found[start:end] = draw.choice(items, end - start, replace=False)
    return found


def permuted_items(users: np.ndarray, x: np.ndarray, *address: int | str) -> np.ndarray:
    """Return the items of all rows in a random order, so that each item keeps its number of rows.

    No user takes an item twice: rows where it would exchange their items with random other rows.

    Raises:
        ValueError: this fails, because a few items have nearly all rows.
    """
    draw = random.numpy_generator(*address)
    found, width = draw.permutation(x), int(x.max()) + 1
    pairs = users * width + found
    order = np.argsort(pairs, kind="stable")
    count = Counter(pairs.tolist())
    for row in order[1:][np.diff(pairs[order]) == 0].tolist():
        mine, item = int(users[row]) * width, int(found[row])
        for _ in range(TRIES):  # with a row of a user that lacks this item, and has one that this user lacks
            other = int(draw.integers(len(x)))
            theirs, instead = int(users[other]) * width, int(found[other])
            if not count[mine + instead] and not count[theirs + item]:
                break
        else:
            raise ValueError(
                "shuffle: 'permuted' found no order in which no user has an item twice; use 'uniform', or leave out "
                "users with nearly all items (max_user)"
            )
        count.subtract([mine + item, theirs + instead])
        count.update([mine + instead, theirs + item])
        found[row], found[other] = instead, item
    return found


def as_dataset(users: np.ndarray, x: np.ndarray, items: int, shuffle: Shuffle | None, seed: int, name: str) -> Dataset:
    """Return the data set of interactions: arrays x (item), y (1.0) and user, with held rows by time.

    Args:
        users: (N,) ids 0, 1, ..., ascending; the rows of a user in the order of time.
        x: (N,) items.
        items: number of items.
        shuffle: null data: `uniform` or `permuted`; None keeps the items.
        seed: seed of the shuffle.
        name: name of the data set, a part of the address of the draws.
    """
    if shuffle == "uniform":
        x = uniform_items(users, items, seed, name, "uniform")
    elif shuffle == "permuted":
        x = permuted_items(users, x, seed, name, "permuted")
    arrays: Arrays = {"x": x.astype(np.int64), "y": np.ones(len(x), np.float32), "user": users.astype(np.int64)}
    return Dataset(arrays, None, users, held=held_by_time(users))
