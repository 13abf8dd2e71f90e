"""Label skew: each class is shared out in Dirichlet proportions.

    p_k ~ Dir(alpha, ..., alpha) over the N clients, for each class k;    client c gets about p_kc n_k of its n_k rows

Hsu, Qi, Brown 2019, arXiv:1909.06335, section 3, in the form of flwr-datasets' DirichletPartitioner (proportions per class
over clients, cut points floor(n_k cumsum(p_k))). Small alpha: few clients hold most of a class; alpha -> inf: iid.
Differs: a client below `min_size` is given random rows of the largest clients, where the others draw again and again.
`balanced: true` gives all clients the same size, and each a class mixture of its own instead (`inner_dirichlet`, the form of the paper).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fl.data.dataset import Dataset
from fl.data.grouping import class_codes, group_by, hash_order
from fl.data.partition import Partition
from fl.registry import register
from fl.tensors import random
from partitions.inner_dirichlet import inner_dirichlet


def dirichlet(
    labels: np.ndarray, clients: int, alpha: float, min_size: int = 1, seed: int = 0, balanced: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """(indices, offsets); all rows are given, each client has at least `min_size`, its rows in random order. Balanced: sizes differ by
    one at most."""
    rows = len(labels)
    if clients < 1:
        raise ValueError(f"clients: {clients} is not positive")
    if not 0 < alpha < math.inf:
        raise ValueError(
            f"alpha: {alpha} is not positive{' and finite; for equal shares take iid' if alpha > 0 else ''}"
        )
    if min_size < 0:
        raise ValueError(f"min_size: {min_size} is negative")
    if clients * min_size > rows:
        raise ValueError(
            f"min_size: {min_size} for each of {clients} clients is {clients * min_size} of {rows} rows; at most {rows // clients}"
        )
    if balanced:
        return inner_dirichlet(labels, np.diff(np.arange(clients + 1) * rows // clients), alpha, seed)
    owners = class_owners(labels, clients, alpha, seed)
    # a second shuffle: within a client rows must not lie class by class, for repair gives away the last ones
    mixed = hash_order(random.hash64(seed, "dirichlet/order", np.arange(rows)))
    order, offsets = repaired(*group_by(owners[mixed], clients), min_size)
    return mixed[order], offsets


def class_owners(labels: np.ndarray, clients: int, alpha: float, seed: int) -> np.ndarray:
    """(R,) who is given each row: of every class, consecutive stretches of its shuffled rows."""
    classes, codes = class_codes(labels)
    shuffled = hash_order(random.hash64(seed, "dirichlet", np.arange(len(labels))))
    by_class, ends = group_by(codes[shuffled], len(classes))
    owners = np.empty(len(labels), np.int64)
    for k, label in enumerate(classes):
        members = shuffled[by_class[ends[k] : ends[k + 1]]]
        shares = proportions(random.numpy_generator(seed, "dirichlet", int(label)), clients, alpha)
        cuts = (len(members) * np.cumsum(shares[:-1])).astype(np.int64)
        owners[members] = np.repeat(np.arange(clients), np.diff(cuts, prepend=0, append=len(members)))
    return owners


def proportions(generator: np.random.Generator, clients: int, alpha: float) -> np.ndarray:
    """(N,) ~ Dir(alpha), in logarithms: Gamma(a) = Gamma(a + 1) U^(1/a), so that alpha = 1e-3 does not underflow to 0 / 0."""
    logs = np.log(generator.standard_gamma(alpha + 1, clients)) + np.log(1 - generator.random(clients)) / alpha
    shares = np.exp(logs - logs.max())
    return shares / shares.sum()


def repaired(order: np.ndarray, offsets: np.ndarray, min_size: int) -> tuple[np.ndarray, np.ndarray]:
    """The same rows with every client at `min_size` or more: the largest clients are lowered to a common level, giving the
    last rows of their slices, and the smallest are filled up. Clients between keep what they have."""
    sizes = np.diff(offsets)
    need = int(np.maximum(min_size - sizes, 0).sum())
    if not need:
        return order, offsets
    low, high = min_size, int(sizes.max())  # the highest level above which there are `need` rows
    while high - low > 1:
        level = (low + high) // 2
        low, high = (level, high) if np.maximum(sizes - level, 0).sum() >= need else (low, level)
    kept = np.minimum(sizes, low)
    spare = int((sizes - kept).sum()) - need  # fewer than there are givers: the first of them give one row less
    kept[np.flatnonzero(sizes > low)[:spare]] += 1
    owners = np.repeat(np.arange(len(sizes)), sizes)
    given = np.arange(len(order)) - offsets[owners] >= kept[owners]
    owners[given] = np.repeat(np.arange(len(sizes)), np.maximum(min_size - sizes, 0))
    regrouped, offsets = group_by(owners, len(sizes))
    return order[regrouped], offsets


@register("partition", "dirichlet")
@dataclass(frozen=True, kw_only=True)
class Dirichlet:
    clients: int
    alpha: float
    min_size: int = 1
    seed: int = 0
    balanced: bool = False

    def split(self, dataset: Dataset) -> Partition:
        arguments = (self.clients, self.alpha, self.min_size, self.seed, self.balanced)
        return Partition(*dirichlet(dataset.labels, *arguments))
