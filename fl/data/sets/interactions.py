"""Synthetic interactions of users and items, for recommendation without files.

    utility(u, i) = popular z_i + sharp a_u . b_i / sqrt(4) + g_ui,    z_i, a_u, b_i standard normal, g_ui Gumbel noise

A user takes the items with the highest utility, in a random order of time. So a user's choice is a draw without
replacement with log-odds given by popularity and taste. a_u and b_i have four coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np

from fl.checks import at_least, not_negative, one_of
from fl.data.dataset import Dataset, Loader
from fl.data.interactions import Shuffle, as_dataset
from fl.registry import register
from fl.tensors import random

RANK = 4  # coordinates of a taste
BLOCK = 1 << 22  # utilities that are drawn at once


@register("data", "interactions")
@dataclass(frozen=True, kw_only=True)
class Interactions(Loader):
    """Synthetic implicit feedback with popular items and tastes; for the task `ranking`.

    Args:
        users: number of users, positive.
        items: number of items, positive.
        per_user: items that each user takes, at least 3 and fewer than `items`.
        popular: strength of popularity, at least 0. 0 makes all items equally popular.
        sharp: strength of the users' tastes, at least 0. 0 gives all users the same taste.
        shuffle: null data: `uniform` redraws the items of each user, `permuted` permutes them over all rows. Default:
            neither.
        seed: seed of all draws.
    """

    users: int = 100
    items: int = 200
    per_user: int = 20
    popular: float = 1.0
    sharp: float = 1.0
    shuffle: Shuffle | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(1, users=self.users, items=self.items)
        at_least(3, per_user=self.per_user)
        not_negative(popular=self.popular, sharp=self.sharp)
        one_of((None, *get_args(Shuffle)), shuffle=self.shuffle)
        if self.per_user >= self.items:
            raise ValueError(f"per_user: {self.per_user} leaves no item of {self.items} that a user has not taken")

    def load(self) -> Dataset:
        draw = random.numpy_generator(self.seed, "interactions")
        popularity = self.popular * draw.standard_normal(self.items)
        tastes, kinds = (draw.standard_normal((n, RANK)) for n in (self.users, self.items))
        x = np.empty((self.users, self.per_user), np.int64)
        step = max(1, BLOCK // self.items)
        for a in range(0, self.users, step):
            part = tastes[a : a + step]
            utility = popularity + self.sharp / np.sqrt(RANK) * part @ kinds.T
            utility += draw.gumbel(size=utility.shape)
            x[a : a + step] = np.argpartition(-utility, self.per_user, axis=1)[:, : self.per_user]
        x = draw.permuted(x, axis=1)
        users = np.repeat(np.arange(self.users), self.per_user)
        return as_dataset(users, x.ravel(), self.items, self.shuffle, self.seed, "interactions")
