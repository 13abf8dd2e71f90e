"""Ranking of items, from implicit feedback: which items will a user take next?

    loss of a pair (user, item) = -(y log p + (1 - y) log(1 - p)),  p = sigmoid(score),  y = 1: the user took the item
    rank  = 1 + number of other candidates whose score is not lower          ties count against the held item
    HR@k  = share of held items with rank <= k            NDCG@k = mean of [rank <= k] log 2 / log(1 + rank)

An evaluation ranks a held item among `candidates` items that the user never took (not in training, validation or test
rows). They are drawn once for each user, addressed by (seed of the run, user), so they are the same in all rounds and
for all methods. The client algorithm puts them into its outputs: scores (B, 1 + candidates), the held item first.
He, Liao, Zhang, Nie, Hu, Chua 2017, arXiv:1708.05031, made this protocol common.

Negatives for training (`negatives`):

    clean         from all items that are not training rows of the user; held items are among them
    as_published  from the items that the user never took, as in the released code of FedRAP and PFedRec. The held item
                  is then the only item that is neither a positive nor a negative, and methods with parameters for each
                  user and item recognise it: HR@10 rises far above 0.1 on random data
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fl.checks import at_least, one_of
from fl.data.checking import refuse, require_labels
from fl.data.views import Batch
from fl.registry import register
from fl.tasks.auroc import auroc
from fl.tasks.task import ClientMetric, MeanMetric, Metric, Task
from fl.tensors import random

log = logging.getLogger(__name__)

ITEMS = "items.weight"  # name of the table of item rows (I, d) in the models of recommendation


def ranks(scores: Tensor) -> Tensor:
    """Return the rank of each first item, int64 (U,), from 1. Ties count against it.

    Args:
        scores: (U, 1 + candidates), the held item first. NaN is a `ValueError`.

    >>> ranks(torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0]])).tolist()
    [1, 3]
    """
    if scores.ndim != 2:
        raise ValueError(f"scores: {tuple(scores.shape)} are not (users, 1 + candidates), the held item first")
    if scores.isnan().any():
        raise ValueError("scores: some are NaN, so items have no order; training has diverged, lower the rates")
    return 1 + (scores[:, 1:] >= scores[:, :1]).sum(1)


def hits(scores: Tensor, k: int) -> Tensor:
    """Return for each user whether the first item is among the k best, float64 (U,). `scores` as in `ranks`."""
    return (ranks(scores) <= k).double()


def gains(scores: Tensor, k: int) -> Tensor:
    """Return for each user [rank <= k] log 2 / log(1 + rank), float64 (U,). `scores` as in `ranks`."""
    rank = ranks(scores).double()
    return torch.where(rank <= k, math.log(2) / torch.log1p(rank), 0.0)


def hit_rate(scores: Tensor, k: int) -> float:
    """Return HR@k, the share of users whose first item has a rank of at most k.

    Args:
        scores: (U, 1 + candidates), the held item first.
        k: length of the list.

    >>> scores = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0]])  # ranks 1 and 3
    >>> hit_rate(scores, 2)
    0.5
    """
    return float(hits(scores, k).mean())


def ndcg(scores: Tensor, k: int) -> float:
    """Return NDCG@k with one relevant item: the mean of [rank <= k] log 2 / log(1 + rank).

    Args:
        scores: (U, 1 + candidates), the held item first.
        k: length of the list.

    >>> round(ndcg(torch.tensor([[2.0, 3.0, 1.0]]), 10), 4)  # rank 2: log 2 / log 3
    0.6309
    """
    return float(gains(scores, k).mean())


def candidates(seed: int, user: int, taken: np.ndarray, items: int, count: int) -> np.ndarray:
    """Return `count` items that a user never took, int64 ascending by a hash of (seed, user, item).

    Args:
        seed: seed of the run.
        user: id of the user.
        taken: items of the user, of all its rows.
        items: number of items.
        count: number of candidates. A `ValueError` if fewer items are left.

    >>> found = candidates(0, 7, np.array([1, 2]), items=6, count=4)
    >>> sorted(found.tolist())
    [0, 3, 4, 5]
    """
    left = _outside(taken, items)
    if len(left) < count:
        raise ValueError(
            f"task.candidates: {count} is more than the {len(left)} items that user {user} has not taken; "
            "lower it, or leave out users with many items (data.max_user)"
        )
    return left[np.argsort(random.hash64(seed, user, "candidates", left), kind="stable")[:count]]


def negative_items(excluded: np.ndarray, items: int, count: int, *address: int | str) -> np.ndarray:
    """Return `count` items outside `excluded`, drawn with replacement at this address, int64 (count,).

    >>> set(negative_items(np.array([0, 1]), 4, 100, 7, "negatives").tolist()) == {2, 3}
    True
    """
    left = _outside(excluded, items)
    if not len(left):
        raise ValueError(f"data: a user has taken all {items} items, so there is no negative; leave this user out")
    return left[(random.uniform(*address, np.arange(count)) * len(left)).astype(np.int64)]


def _outside(taken: np.ndarray, items: int) -> np.ndarray:
    """Return the items 0, ..., items - 1 without those in `taken`, ascending."""
    free = np.ones(items, bool)
    free[taken] = False
    return np.flatnonzero(free)


class HitRate(MeanMetric):
    """HR@k.

    Args:
        k: length of the list.
    """

    def __init__(self, k: int):
        self.k = k

    def values(self, outputs: Tensor, batch: Batch) -> Tensor:
        return hits(outputs, self.k)


class NDCG(MeanMetric):
    """NDCG@k.

    Args:
        k: length of the list.
    """

    def __init__(self, k: int):
        self.k = k

    def values(self, outputs: Tensor, batch: Batch) -> Tensor:
        return gains(outputs, self.k)


class AUC(ClientMetric):
    """Area under the ROC curve of one client: its held items against its candidates."""

    def value(self, outputs: Tensor, batch: Batch) -> float:
        held = torch.zeros_like(outputs, dtype=torch.bool)
        held[:, 0] = True
        return auroc(outputs.flatten(), held.flatten())


@register("task", "ranking")
@dataclass(frozen=True, kw_only=True)
class Ranking(Task):
    """Ranking of items: x is the id of an item, y is 1 for an item that the user took. Metrics hr10 and ndcg10.

    Args:
        k: length of the list in HR@k and NDCG@k, positive; the metrics are named `hrK` and `ndcgK`.
        candidates: items that the held item is ranked among, positive.
        negatives: items that training draws negatives from: `clean` (all but the user's training rows) or
            `as_published` (all but the user's training, validation and test rows). The second one leaks which item is
            held, and warns.
        items: number of items. Default: the largest id in x plus 1.
        auc: whether the area under the ROC curve of each client, `auc`, is a metric, too.
    """

    k: int = 10
    candidates: int = 99
    negatives: Literal["clean", "as_published"] = "clean"
    items: int | None = None
    auc: bool = False

    example_config: ClassVar[Mapping[str, Any]] = {"task.items": 4}
    word_labels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        at_least(1, k=self.k, candidates=self.candidates, items=self.items)
        one_of(("clean", "as_published"), negatives=self.negatives)
        if self.negatives == "as_published":
            log.warning(
                "task.negatives: as_published never draws held items as negatives, so methods can recognise them: "
                "HR@10 rises far above 0.1 on random data; use clean to compare methods"
            )

    def checked(self, arrays: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
        """Take ids of items as whole numbers from 0, and y of 0 and 1 as float32.

        With the array `user` (N,), refuse users that leave fewer than `candidates` items.
        """
        x, y = arrays["x"], require_labels(arrays, where)
        if y is None:
            return dict(arrays)
        if x.ndim != 1 or y.ndim != 1 or x.dtype.kind not in "iu":
            raise ValueError(
                f"{where} x {x.dtype} {x.shape} and y {y.shape} are not the id of an item, a whole number, and 0 or 1 "
                "for each row"
            )
        x, limit = x.astype(np.int64), self.items or int(x.max(initial=0)) + 1
        wrong = (x < 0) | (x >= limit)
        refuse(wrong, x, where, f"ids of items are 0 to {limit - 1}; set a larger task.items", name="x")
        refuse((y != 0) & (y != 1), y, where, "1 is an item that the user took, 0 one that it did not take")
        if "user" in arrays:
            self._require_candidates(arrays["user"], x, limit)
        return {**arrays, "x": x, "y": y.astype(np.float32)}

    def _require_candidates(self, users: np.ndarray, x: np.ndarray, items: int) -> None:
        pairs = np.unique(users.astype(np.int64) * items + x)
        owners, taken = np.unique(pairs // items, return_counts=True)
        if items - taken.max() < self.candidates:
            raise ValueError(
                f"task.candidates: user {owners[taken.argmax()]} has taken {taken.max()} of {items} items, so fewer "
                f"than {self.candidates} are left; lower it, or leave out users with many items (data.max_user)"
            )

    def num_outputs(self, arrays: Mapping[str, np.ndarray]) -> int:
        """Return the number of items."""
        if self.items is None and "x" not in arrays:
            raise ValueError("x: missing; set task.items")
        return self.items or int(arrays["x"].max()) + 1

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        y = batch["y"].to(outputs.dtype)
        return F.binary_cross_entropy_with_logits(outputs, y, reduction="none").reshape(len(y), -1).mean(1)

    def metrics(self) -> Mapping[str, Metric]:
        found: dict[str, Metric] = {f"hr{self.k}": HitRate(self.k), f"ndcg{self.k}": NDCG(self.k)}
        return {**found, "auc": AUC()} if self.auc else found
