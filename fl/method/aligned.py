"""Rows that the parties of a vertical federation have in common: of a training step, and of a whole view.

All parties derive the rows of a step from the seed, so that no ids travel.
"""

from __future__ import annotations

import functools

import numpy as np
from torch import Tensor

from fl.data.views import View
from fl.errors import ConfigError
from fl.method.context import ClientContext
from fl.tensors import random

MOST_BATCHES = 16_000  # in a round with two exchanges per batch; places of exchanges in a round have 15 bits


@functools.lru_cache(maxsize=2)
def _order(count: int, seed: int, round_: int) -> np.ndarray:
    """Return a random order (count,) of the training rows in a round."""
    order = random.permutation(count, seed, round_, "aligned rows")
    order.flags.writeable = False
    return order


def batch_rows(count: int, seed: int, round_: int, step: int, batch: int) -> np.ndarray:
    """Return the positions of a step's rows. The steps of a round pass over all rows once.

    >>> rows = [batch_rows(count=5, seed=0, round_=0, step=step, batch=2) for step in range(3)]
    >>> [len(each) for each in rows], sorted(int(row) for each in rows for row in each)
    ([2, 2, 1], [0, 1, 2, 3, 4])

    Args:
        count: number of training rows, the same for all parties.
        seed: seed of the run.
        round_: the round, from 0.
        step: the step in the round, from 0.
        batch: rows of a step; the last step may have fewer.
    """
    return _order(count, seed, round_)[step * batch : (step + 1) * batch]


def batches(count: int, batch: int) -> int:
    """Return the number of batches in a pass over `count` rows."""
    return -(-count // batch)


def check_batches(count: int, batch: int) -> None:
    """Check that a pass over `count` rows has few enough batches for a round.

    Raises:
        ConfigError: it has more.
    """
    if batches(count, batch) > MOST_BATCHES:
        raise ConfigError(
            "strategy.batch",
            f"{batch} makes {batches(count, batch)} batches of {count} rows, and a round has at most {MOST_BATCHES}; "
            f"use batch: {-(-count // MOST_BATCHES)} or more",
        )


def all_rows(ctx: ClientContext) -> Tensor:
    """Return the columns of all rows of the view that `ctx.config["view"]` names: "train", "val" or "test"."""
    view: View = getattr(ctx, ctx.config["view"])
    return view.take()["x"]
