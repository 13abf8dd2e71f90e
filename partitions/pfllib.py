"""PFLlib's partition, draw for draw: the same seed gives the same rows as PFLlib's generator.

    m = int(min(10 / (1 - 0.75), R / N / 2)),  RandomState(seed);   repeat until the smallest client has m rows:
      for each class k, ascending: shuffle its rows;  p ~ Dir(alpha) over N
        p_c <- 0 if c has >= R / N rows;  p <- p / sum p
        cut the rows at floor(n_k cumsum p), without the last cut, and append
    then for each client scikit-learn's train_test_split(train_size=0.75, shuffle=True) with the same generator

Zhang, Liu, Hua, Wang, Song, Xue, Cao 2023, arXiv:2312.04992; TsingZ0/PFLlib `dataset/utils/dataset_utils.py`. PFLlib
pools the training and test rows of a set, training rows first (MNIST: 70,000 rows). Results are not comparable with
the canonical split, and there is no server test set. The published MNIST partition is clients=20, alpha=0.1, seed=1.

Differs: after `tries` draws with a client below m rows an error is raised; PFLlib repeats without limit. NumPy's legacy
generator and the loop over clients belong to the original; for many clients use 'dirichlet'.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.checks import within
from fl.data.dataset import Dataset
from fl.data.grouping import class_codes
from fl.data.partition import Partition
from fl.data.partitioner import Partitioner
from fl.registry import register

TRAIN, BATCH = 0.75, 10


def pfllib(
    labels: np.ndarray, clients: int = 20, alpha: float = 0.1, seed: int = 1, tries: int = 1000
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (indices, offsets, tests (N,)). All rows are used; the last tests[c] rows of client c are for testing."""
    rows = len(labels)
    if not 1 <= clients <= rows // 4:
        raise ValueError(
            f"clients: {clients} is not in 1..{rows // 4}, a quarter of the rows; "
            "each client needs training and test rows"
        )
    within("(0, inf)", alpha=alpha)
    classes, codes = class_codes(labels)
    least, generator = int(min(BATCH / (1 - TRAIN), rows / clients / 2)), np.random.RandomState(seed)
    for _ in range(tries):
        owners = _drawn(generator, codes, len(classes), clients, alpha)
        if owners is not None and min(map(len, owners)) >= least:
            break
    else:
        raise ValueError(
            f"alpha: {alpha} left one of {clients} clients with fewer than {least} rows in {tries} draws; "
            "use a larger alpha, fewer clients, or 'dirichlet', which moves rows"
        )
    from sklearn.model_selection import train_test_split  # importing it takes a second

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
    """Draw the rows of each client once; None if the shares underflow to 0."""
    rows, drawn = len(codes), [np.empty(0, np.int64)] * clients
    for k in range(classes):
        members = np.flatnonzero(codes == k)
        generator.shuffle(members)
        shares = generator.dirichlet(np.repeat(alpha, clients))
        shares = np.array([p * (len(each) < rows / clients) for p, each in zip(shares, drawn)])
        if not shares.sum() > 0:
            return None
        cuts = (np.cumsum(shares / shares.sum()) * len(members)).astype(int)[:-1]
        drawn = [np.concatenate(pair) for pair in zip(drawn, np.split(members, cuts))]
    return drawn


@register("partition", "pfllib")
@dataclass(frozen=True, kw_only=True)
class Pfllib(Partitioner):
    """PFLlib's Dirichlet partition with test rows for each client; splits.test stays 0.

    Args:
        clients: Number of clients; at most a quarter of the rows.
        alpha: Concentration, positive. Small: few clients hold most of a class. Large: nearly iid.
        seed: Seed of NumPy's legacy generator.
    """

    clients: int
    alpha: float
    seed: int = 1

    def split(self, dataset: Dataset) -> Partition:
        indices, offsets, tests = pfllib(dataset.labels, self.clients, self.alpha, self.seed)
        return Partition(indices, offsets, test=tests)
