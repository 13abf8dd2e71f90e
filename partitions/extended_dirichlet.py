"""A few classes per client in Dirichlet shares: k classes each, and of each class random shares to its holders.

    client c holds S_c, |S_c| = k       p_k ~ Dir(alpha, ..., alpha) over the holders of class k;    c gets about p_kc n_k rows

Li, Lyu 2023, arXiv:2311.03154 (Extended Dirichlet, ExDir(C, alpha)). k = K is the Dirichlet partition over classes; alpha -> inf is the
pathological one. Every class has a holder (N k >= K): the first ceil(K / k) clients of a random order are dealt all classes in
turn, the others draw k each. Differs: before shares are drawn each holder is given ceil(min_size / k) rows of each of its
classes, so that nobody has fewer classes or rows than promised and nothing is drawn again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fl.data.dataset import Dataset
from fl.data.grouping import class_codes, deal_classes, hash_order
from fl.data.partition import Partition
from fl.registry import register
from fl.tensors import random
from partitions.dirichlet import proportions


def extended_dirichlet(
    labels: np.ndarray, clients: int, classes: int, alpha: float, min_size: int = 1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(indices, offsets); all rows are given, each client has exactly `classes` classes and at least `min_size` rows."""
    names, codes = class_codes(labels)
    if not 1 <= clients <= len(labels):
        raise ValueError(f"clients: {clients} is not in 1..{len(labels)}, the number of rows")
    if not 1 <= classes <= len(names):
        raise ValueError(f"classes: {classes} is not in 1..{len(names)}, the number of classes there are")
    if clients * classes < len(names):
        raise ValueError(
            f"classes: {classes} for each of {clients} clients leave some of the {len(names)} to nobody; "
            f"at least {-(-len(names) // clients)}"
        )
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha: {alpha} is not positive{' and finite; take pathological' if alpha > 0 else ''}")
    if min_size < 0:
        raise ValueError(f"min_size: {min_size} is negative")
    held, supply, least = (
        covering(clients, len(names), classes, seed),
        np.bincount(codes),
        max(1, -(-min_size // classes)),
    )
    if (held.sum(0) * least > supply).any():
        k = int((held.sum(0) * least - supply).argmax())
        raise ValueError(
            f"min_size: {least} rows of class {names[k]} for each of its {held[:, k].sum()} holders are more than the "
            f"{supply[k]} there are; take fewer clients, fewer classes for each or a smaller min_size"
        )
    counts = np.zeros(held.shape, np.int64)
    for k, n in enumerate(supply):
        holders = np.flatnonzero(held[:, k])
        shares = proportions(random.numpy_generator(seed, "extended_dirichlet", k), len(holders), alpha)
        free = n - least * len(holders)
        cuts = (free * np.cumsum(shares[:-1])).astype(np.int64)
        counts[holders, k] = least + np.diff(cuts, prepend=0, append=free)
    return deal_classes(codes, counts, seed, "extended_dirichlet")


def covering(clients: int, classes: int, k: int, seed: int = 0) -> np.ndarray:
    """(N, K) bool: k classes for each client, every class someone's."""
    words = random.hash64(seed, "extended_dirichlet", np.arange(clients)[:, None], np.arange(classes))
    first = hash_order(random.hash64(seed, "extended_dirichlet/first", np.arange(clients)))[: -(-classes // k)]
    turn = random.permutation(classes, seed, "extended_dirichlet/turn")
    words[np.repeat(first, k)[:classes], turn] = 0
    held = np.zeros((clients, classes), bool)
    np.put_along_axis(held, np.argpartition(words, k - 1, axis=1)[:, :k], True, axis=1)
    return held


@register("partition", "extended_dirichlet")
@dataclass(frozen=True, kw_only=True)
class ExtendedDirichlet:
    """Each client holds exactly `classes` classes, in Dirichlet shares."""

    clients: int
    classes: int
    alpha: float
    min_size: int = 1
    seed: int = 0

    def split(self, dataset: Dataset) -> Partition:
        arguments = (self.clients, self.classes, self.alpha, self.min_size, self.seed)
        return Partition(*extended_dirichlet(dataset.labels, *arguments))
