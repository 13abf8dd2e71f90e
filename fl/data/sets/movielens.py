"""MovieLens latest-small: 100,836 ratings of 9,724 films by 610 users (Harper, Konstan 2015, ACM TiiS 5:4).

From movielens_latest_small/ml_latest_small.npz in the data folder. Feedback is implicit: a rating of any height is an
interaction, x the film, y = 1. A user is a natural owner. Its rows are in the order of time; the last one is for
tests, the one before for validation. GroupLens calls this a development set, not one to publish results on.

Filters act in this order: users by their number of ratings, then the first users, then films by their number of ratings
of these users, then users that have fewer than three rows left. Films and users are numbered from 0 in the old order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np

from fl.checks import at_least, one_of
from fl.data.archives import read_npz
from fl.data.dataset import Dataset, Loader
from fl.data.folder import find
from fl.data.interactions import Shuffle, as_dataset
from fl.registry import register

FEWEST = 3  # one row each for training, validation and tests


@register("data", "movielens")
@dataclass(frozen=True, kw_only=True)
class MovieLens(Loader):
    """MovieLens latest-small as implicit feedback; for the task `ranking`.

    Args:
        min_user: fewest ratings of a user, at least 3. Others are left out.
        max_user: most ratings of a user. Others are left out. Default: no limit.
        min_item: fewest ratings of a film by the users that stay, at least 1. Others are left out.
        users: number of users that stay, the first ones, positive. Default: all.
        shuffle: null data. `uniform` redraws the films of each user, all equally likely; any fair method then has HR@10
            of 0.1 among 99 candidates. `permuted` permutes the films over all rows, so that each film keeps its number
            of ratings. Default: the real films.
        seed: seed of the shuffle.
    """

    min_user: int = 10
    max_user: int | None = None
    min_item: int = 1
    users: int | None = None
    shuffle: Shuffle | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(FEWEST, min_user=self.min_user, max_user=self.max_user)
        at_least(1, min_item=self.min_item, users=self.users)
        one_of((None, *get_args(Shuffle)), shuffle=self.shuffle)

    def load(self) -> Dataset:
        path = find("movielens_latest_small", "ml_latest_small.npz")
        stored = read_npz(path, key="data")
        users, items, time = (stored[name].astype(np.int64) for name in ("user", "item", "timestamp"))
        order = np.lexsort((items, time, users))
        users, items = users[order], items[order]
        ratings = np.bincount(users)
        most = ratings.max() if self.max_user is None else self.max_user
        chosen = np.flatnonzero((ratings >= self.min_user) & (ratings <= most))[: self.users]
        kept = np.isin(users, chosen)
        users, items = users[kept], items[kept]
        kept = np.bincount(items, minlength=1)[items] >= self.min_item
        users, items = users[kept], items[kept]
        kept = np.bincount(users, minlength=1)[users] >= FEWEST
        if not kept.any():
            raise ValueError(
                f"min_user: {self.min_user}, max_user: {self.max_user} and min_item: {self.min_item} leave no user; "
                "lower the minima"
            )
        users, items = (np.unique(column[kept], return_inverse=True)[1] for column in (users, items))
        return as_dataset(users, items, int(items.max()) + 1, self.shuffle, self.seed, "movielens")
