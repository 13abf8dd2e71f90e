"""Quantity skew: iid rows, but different numbers of rows.

    lognormal   n_c ~ exp(skew z_c),  z_c ~ N(0, 1)          power_law   n_c ~ r_c^-skew,  r_c = 1..N in random order

scaled to sum to all R rows and rounded by largest remainders; rows are distributed at random. LEAF's data sets are
nearly log-normal (Caldas et al. 2018, arXiv:1812.01097), those of FedProx follow a power law (Li et al. 2020,
arXiv:1812.06127). skew = 0 is iid. A client below `min_size` gets rows of the largest clients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fl.checks import one_of, within
from fl.data.dataset import Dataset
from fl.data.grouping import apportion, hash_order
from fl.data.partition import Partition
from fl.data.partitioner import Partitioner
from fl.registry import register
from fl.tensors import random

from .min_size import check_min_size, repaired

LAWS = ("lognormal", "power_law")


def quantity(
    rows: int, clients: int, law: str = "lognormal", skew: float = 1.0, min_size: int = 1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return (indices, offsets). All rows are distributed; each client has at least `min_size` rows."""
    one_of(LAWS, law=law)
    if not 1 <= clients <= rows:
        raise ValueError(f"clients: {clients} is not in 1..{rows}, the number of rows")
    within("[0, inf)", skew=skew, hint="0 gives equal sizes")
    check_min_size(min_size, clients, rows)
    offsets = np.concatenate([[0], np.cumsum(apportion(weights(clients, law, skew, seed), rows))])
    return repaired(hash_order(random.hash64(seed, "quantity", np.arange(rows))), offsets, min_size)


def weights(clients: int, law: str, skew: float, seed: int = 0) -> np.ndarray:
    """Return the sizes (N,) up to a factor; the largest is 1."""
    if law == "lognormal":
        logs = skew * random.numpy_generator(seed, "quantity").standard_normal(clients)
    else:
        logs = -skew * np.log1p(random.permutation(clients, seed, "quantity"))
    return np.exp(logs - logs.max())


@register("partition", "quantity")
@dataclass(frozen=True, kw_only=True)
class Quantity(Partitioner):
    """iid rows with log-normal or power-law sizes.

    Args:
        clients: Number of clients; from 1 to the number of rows.
        law: Distribution of the sizes: `lognormal` or `power_law`.
        skew: Sigma of the log-normal, or exponent of the power law; at least 0. 0 gives equal sizes.
        min_size: Minimum number of rows per client; at least 0.
        seed: Seed of the random choices.
    """

    clients: int
    law: Literal["lognormal", "power_law"] = "lognormal"
    skew: float = 1.0
    min_size: int = 1
    seed: int = 0

    def split(self, dataset: Dataset) -> Partition:
        return Partition(*quantity(len(dataset), self.clients, self.law, self.skew, self.min_size, self.seed))
