"""Quantity skew: clients alike in kind and unlike in size.

    lognormal   n_c ~ exp(skew z_c),  z_c ~ N(0, 1)          power_law   n_c ~ r_c^-skew,  r_c = 1..N in random order

up to the factor that makes them sum to all R rows, rounded by largest remainders; rows are shared at random. LEAF's data sets
are near log-normal (Caldas et al. 2018, arXiv:1812.01097), FedProx' follow a power law (Li et al. 2020, arXiv:1812.06127). skew = 0 is
iid. A client below `min_size` is given rows of the largest clients.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fl.data.dataset import Dataset
from fl.data.grouping import apportion, hash_order
from fl.data.partition import Partition
from fl.registry import register
from fl.tensors import random
from partitions.dirichlet import repaired

LAWS = ("lognormal", "power_law")


def quantity(
    rows: int, clients: int, law: str = "lognormal", skew: float = 1.0, min_size: int = 1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(indices, offsets); all rows are given, each client has at least `min_size`."""
    if law not in LAWS:
        raise ValueError(f"law: {law!r} is not one of {list(LAWS)}")
    if not 1 <= clients <= rows:
        raise ValueError(f"clients: {clients} is not in 1..{rows}, the number of rows")
    if not 0 <= skew < math.inf:
        raise ValueError(f"skew: {skew} is not a number of at least 0; 0 is equal sizes")
    if min_size < 0:
        raise ValueError(f"min_size: {min_size} is negative")
    if clients * min_size > rows:
        raise ValueError(
            f"min_size: {min_size} for each of {clients} clients is {clients * min_size} of {rows} rows; at most {rows // clients}"
        )
    offsets = np.concatenate([[0], np.cumsum(apportion(weights(clients, law, skew, seed), rows))])
    return repaired(hash_order(random.hash64(seed, "quantity", np.arange(rows))), offsets, min_size)


def weights(clients: int, law: str, skew: float, seed: int = 0) -> np.ndarray:
    """(N,): sizes up to a factor, the largest 1."""
    if law == "lognormal":
        logs = skew * random.numpy_generator(seed, "quantity").standard_normal(clients)
    else:
        logs = -skew * np.log1p(random.permutation(clients, seed, "quantity"))
    return np.exp(logs - logs.max())


@register("partition", "quantity")
@dataclass(frozen=True, kw_only=True)
class Quantity:
    """iid rows, sizes by a log-normal (`skew` is sigma) or a power law (`skew` is the exponent)."""

    clients: int
    law: Literal["lognormal", "power_law"] = "lognormal"
    skew: float = 1.0
    min_size: int = 1
    seed: int = 0

    def split(self, dataset: Dataset) -> Partition:
        return Partition(*quantity(len(dataset), self.clients, self.law, self.skew, self.min_size, self.seed))
