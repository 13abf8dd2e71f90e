"""Class prototypes: the mean embedding of each class, kept as a `Table` (class ids, means, counts) that merges exactly.

n_c, m_c        count and mean embedding of class c in a batch                               `prototypes`
N_c <- N_c + n_c,   mu_c <- mu_c + (n_c / N_c) (m_c - mu_c)                                  `merge`
score of class c = - |z - mu_c|^2                                                            `nearest`
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fl.tensors.sparse import Table


def prototypes(z: Tensor, y: Tensor) -> Table:
    """z (n, D), y (n,) int64 -> one row per class in y; means in z's dtype, summed in float64, counts int32."""
    keys, at = torch.unique(y, return_inverse=True)
    counts = torch.bincount(at, minlength=len(keys))
    sums = torch.zeros(len(keys), z.shape[1], dtype=torch.float64).index_add_(0, at, z.double())
    return Table(keys, (sums / counts[:, None]).to(z.dtype), counts.int())


def merge(table: Table | None, increment: Table) -> Table:
    """The prototypes after more samples; means keep the dtype of `increment`, classes without samples have no row.

    The increment holds the new samples alone. A class that it does not touch keeps its mean to the bit.
    """
    parts = [
        Table(t.keys[t.counts > 0], t.values[t.counts > 0], t.counts[t.counts > 0]) for t in (table, increment) if t
    ]
    keys = torch.unique(torch.cat([part.keys for part in parts]))
    means = torch.zeros(len(keys), *increment.values.shape[1:], dtype=torch.float64)
    counts = torch.zeros(len(keys), dtype=torch.int64)
    for part in parts:
        at = torch.searchsorted(keys, part.keys)
        counts[at] += part.counts.long()
        means[at] += (part.counts.double() / counts[at])[:, None] * (part.values.double() - means[at])
    return Table(keys, means.to(increment.values.dtype), counts.to(increment.counts.dtype))


def squared_distances(z: Tensor, mu: Tensor) -> Tensor:
    """z (B, D), mu (K, D) -> (B, K). From differences: |z|^2 - 2 z mu + |mu|^2 would cancel far from the origin."""
    return torch.cdist(z, mu, compute_mode="donot_use_mm_for_euclid_dist").square()


def nearest(z: Tensor, table: Table | None, outputs: int) -> Tensor:
    """z (B, D) -> scores (B, outputs). A class without a prototype scores 1 less than the farthest one (0 if there is none),
    so that it is never predicted and a loss stays finite."""
    if table is None or not len(table.keys):
        return z.new_zeros(len(z), outputs)
    known = -squared_distances(z, table.values)
    scores = (known.amin(1, keepdim=True) - 1).repeat(1, outputs)
    scores[:, table.keys] = known
    return scores


def embed(net: Callable[[Tensor], Tensor], x: Tensor, batch: int) -> Tensor:
    """x (n, ...) -> z (n, D), `batch` samples at a time; n may be 0."""
    with torch.no_grad():
        return torch.cat([net(x[a : a + batch]) for a in range(0, max(len(x), 1), batch)])
