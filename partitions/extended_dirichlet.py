"""A few classes per client: k classes each, and each class is distributed in Dirichlet shares among its holders.

    client c holds S_c, |S_c| = k   p_k ~ Dir(alpha, ..., alpha) over the holders of class k; c gets about p_kc n_k

Li, Lyu 2023, arXiv:2311.03154 (Extended Dirichlet, ExDir(C, alpha)). k = K is the Dirichlet partition over classes;
alpha -> inf is the pathological one. Each class has a holder (N k >= K): the first ceil(K / k) clients of a random
order get all classes in turn, the others draw k each. Differs: each holder first gets ceil(min_size / k) rows of each
of its classes, so the numbers of classes and rows are guaranteed without repeated draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.checks import not_negative, within
from fl.data.dataset import Dataset
from fl.data.grouping import class_codes, deal_classes, hash_order
from fl.data.partition import Partition
from fl.data.partitioner import Partitioner
from fl.registry import register
from fl.tensors import random

from .dirichlet import proportions


def extended_dirichlet(
    labels: np.ndarray, clients: int, classes: int, alpha: float, min_size: int = 1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return (indices, offsets). All rows are distributed.

    Each client has exactly `classes` classes and at least `min_size` rows.
    """
    names, codes = class_codes(labels)
    if not 1 <= clients <= len(labels):
        raise ValueError(f"clients: {clients} is not in 1..{len(labels)}, the number of rows")
    if not 1 <= classes <= len(names):
        raise ValueError(f"classes: {classes} is not in 1..{len(names)}, the number of classes")
    if clients * classes < len(names):
        raise ValueError(
            f"classes: {classes} for each of {clients} clients do not cover the {len(names)} classes; "
            f"at least {-(-len(names) // clients)}"
        )
    within("(0, inf)", alpha=alpha, hint="'pathological' gives equal shares")
    not_negative(min_size=min_size)
    held = covering(clients, len(names), classes, seed)
    supply, least = np.bincount(codes), max(1, -(-min_size // classes))
    if (held.sum(0) * least > supply).any():
        k = int((held.sum(0) * least - supply).argmax())
        raise ValueError(
            f"min_size: {least} rows of class {names[k]} for each of its {held[:, k].sum()} holders are more than its "
            f"{supply[k]} rows; use fewer clients, fewer classes per client or a smaller min_size"
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
    """Draw k classes per client, (N, K) bool, such that each class has a holder."""
    words = random.hash64(seed, "extended_dirichlet", np.arange(clients)[:, None], np.arange(classes))
    first = hash_order(random.hash64(seed, "extended_dirichlet/first", np.arange(clients)))[: -(-classes // k)]
    turn = random.permutation(classes, seed, "extended_dirichlet/turn")
    words[np.repeat(first, k)[:classes], turn] = 0
    held = np.zeros((clients, classes), bool)
    np.put_along_axis(held, np.argpartition(words, k - 1, axis=1)[:, :k], True, axis=1)
    return held


@register("partition", "extended_dirichlet")
@dataclass(frozen=True, kw_only=True)
class ExtendedDirichlet(Partitioner):
    """A fixed number of classes per client, each class in Dirichlet shares.

    Args:
        clients: Number of clients; at least 1.
        classes: Number of classes of each client, from 1 to the number of classes.
        alpha: Concentration of the shares, positive. Large: equal shares.
        min_size: Minimum number of rows per client; at least 0.
        seed: Seed of the random choices.
    """

    clients: int
    classes: int
    alpha: float
    min_size: int = 1
    seed: int = 0

    def split(self, dataset: Dataset) -> Partition:
        arguments = (self.clients, self.classes, self.alpha, self.min_size, self.seed)
        return Partition(*extended_dirichlet(dataset.labels, *arguments))
