"""PFLlib's recipe, draw for draw: the same seed gives the very rows that PFLlib's generator gives.

    m = int(min(10 / (1 - 0.75), R / N / 2)),  RandomState(seed);   repeat until the smallest client has m rows:
      for each class k, ascending: its rows, shuffled in place;   p ~ Dir(alpha) over N,  p_c <- 0 where c has >= R / N rows,  p <- p / sum p
        cut at floor(n_k cumsum p), the last one dropped, and append
    then for each client in turn scikit-learn's train_test_split(train_size=0.75, shuffle=True) on the same generator

Zhang, Liu, Hua, Wang, Song, Xue, Cao 2023, arXiv:2312.04992; TsingZ0/PFLlib `dataset/utils/dataset_utils.py`. It pools a set's train and test,
train first (MNIST: 70,000 rows): results on it are not results on the canonical split, and no server test set is left. The
published MNIST partition is clients=20, alpha=0.1, seed=1.
Differs: after `tries` draws that leave someone with fewer than m rows it is refused, where theirs draws on for ever. NumPy's legacy generator
and the loop over clients are the recipe's own; for many clients take 'dirichlet'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fl.data.dataset import Dataset
from fl.data.grouping import class_codes
from fl.data.partition import Partition
from fl.registry import register

TRAIN, BATCH = 0.75, 10


def pfllib(
    labels: np.ndarray, clients: int = 20, alpha: float = 0.1, seed: int = 1, tries: int = 1000
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(indices, offsets, tests (N,)): all rows, the last tests[c] of a client's for testing."""
    rows = len(labels)
    if not 1 <= clients <= rows // 4:
        raise ValueError(
            f"clients: {clients} is not in 1..{rows // 4}, a quarter of the rows: each needs some to train and to test"
        )
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha: {alpha} is not a positive number")
    classes, codes = class_codes(labels)
    least, generator = int(min(BATCH / (1 - TRAIN), rows / clients / 2)), np.random.RandomState(seed)
    for _ in range(tries):
        owners = _drawn(generator, codes, len(classes), clients, alpha)
        if owners is not None and min(map(len, owners)) >= least:
            break
    else:
        raise ValueError(
            f"alpha: {alpha} left one of {clients} clients with fewer than {least} rows in {tries} draws; "
            "take a larger alpha, fewer clients, or 'dirichlet', which repairs"
        )
    from sklearn.model_selection import train_test_split  # a second to import

    halves = [train_test_split(rows, train_size=TRAIN, shuffle=True, random_state=generator) for rows in owners]
    offsets = np.concatenate([[0], np.cumsum([len(rows) for rows in owners])])
    return (
        np.concatenate([half for pair in halves for half in pair]),
        offsets,
        np.array([len(test) for _, test in halves]),
    )


def _drawn(
    generator: np.random.RandomState, codes: np.ndarray, classes: int, clients: int, alpha: float
) -> list[np.ndarray] | None:
    """One draw: the rows of each client, or None where shares have underflowed to nothing."""
    rows, mine = len(codes), [np.empty(0, np.int64)] * clients
    for k in range(classes):
        members = np.flatnonzero(codes == k)
        generator.shuffle(members)
        shares = generator.dirichlet(np.repeat(alpha, clients))
        shares = np.array([p * (len(own) < rows / clients) for p, own in zip(shares, mine)])
        if not shares.sum() > 0:
            return None
        cuts = (np.cumsum(shares / shares.sum()) * len(members)).astype(int)[:-1]
        mine = [np.concatenate(pair) for pair in zip(mine, np.split(members, cuts))]
    return mine


@register("partition", "pfllib")
@dataclass(frozen=True, kw_only=True)
class Pfllib:
    """PFLlib's Dirichlet partition with its own test rows for every client, draw for draw; splits.test stays 0."""

    clients: int
    alpha: float
    seed: int = 1

    def split(self, dataset: Dataset) -> Partition:
        indices, offsets, tests = pfllib(dataset.labels, self.clients, self.alpha, self.seed)
        return Partition(indices, offsets, test=tests)
