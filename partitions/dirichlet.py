"""Label skew: each class is distributed in Dirichlet proportions.

    p_k ~ Dir(alpha, ..., alpha) over the N clients, for each class k;    client c gets about p_kc n_k of its n_k rows

Hsu, Qi, Brown 2019, arXiv:1909.06335, section 3, in the form of flwr-datasets' DirichletPartitioner (proportions per
class over clients, cut points floor(n_k cumsum(p_k))). Small alpha: few clients hold most of a class; alpha -> inf:
iid.
Differs: a client below `min_size` gets random rows of the largest clients; other programs repeat the draw.
`balanced: true` gives all clients the same size and each client its own class mixture (`inner_dirichlet`, as in the
paper).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.checks import positive, within
from fl.data.dataset import Dataset
from fl.data.grouping import class_codes, group_by, hash_order
from fl.data.partition import Partition
from fl.data.partitioner import Partitioner
from fl.registry import register
from fl.tensors import random

from .inner_dirichlet import inner_dirichlet
from .min_size import check_min_size, repaired


def dirichlet(
    labels: np.ndarray, clients: int, alpha: float, min_size: int = 1, seed: int = 0, balanced: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return (indices, offsets). All rows are distributed; the rows of a client are in random order.

    Each client has at least `min_size` rows. With `balanced`, sizes differ by at most one.
    """
    rows = len(labels)
    positive(clients=clients)
    within("(0, inf)", alpha=alpha, hint="'iid' gives equal shares")
    check_min_size(min_size, clients, rows)
    if balanced:
        return inner_dirichlet(labels, np.diff(np.arange(clients + 1) * rows // clients), alpha, seed)
    owners = class_owners(labels, clients, alpha, seed)
    # shuffle again: `repaired` gives away the last rows of a client, which must not be of one class
    mixed = hash_order(random.hash64(seed, "dirichlet/order", np.arange(rows)))
    order, offsets = repaired(*group_by(owners[mixed], clients), min_size)
    return mixed[order], offsets


def class_owners(labels: np.ndarray, clients: int, alpha: float, seed: int) -> np.ndarray:
    """Return the owner (R,) of each row: the shuffled rows of each class are cut in Dirichlet proportions."""
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
    """Draw proportions (N,) ~ Dir(alpha).

    It is computed in logarithms, Gamma(a) = Gamma(a + 1) U^(1/a), so that a small alpha does not underflow to 0 / 0.
    """
    logs = np.log(generator.standard_gamma(alpha + 1, clients)) + np.log(1 - generator.random(clients)) / alpha
    shares = np.exp(logs - logs.max())
    return shares / shares.sum()


@register("partition", "dirichlet")
@dataclass(frozen=True, kw_only=True)
class Dirichlet(Partitioner):
    """Label skew with Dirichlet proportions of each class over the clients.

    Args:
        clients: Number of clients; positive.
        alpha: Concentration, positive. Small: few clients hold most of a class. Large: nearly iid.
        min_size: Minimum number of rows per client; at least 0.
        seed: Seed of the random choices.
        balanced: Give all clients the same number of rows, each with its own class mixture.
    """

    clients: int
    alpha: float
    min_size: int = 1
    seed: int = 0
    balanced: bool = False

    def split(self, dataset: Dataset) -> Partition:
        arguments = (self.clients, self.alpha, self.min_size, self.seed, self.balanced)
        return Partition(*dirichlet(dataset.labels, *arguments))
