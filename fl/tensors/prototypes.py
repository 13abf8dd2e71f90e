"""Class prototypes: the mean embedding of each class, as a `Table` of class ids, means and counts.

n_c, m_c                                    count and mean embedding of class c in a batch        `class_means`
N_c <- N_c + n_c,   mu_c <- mu_c + (n_c / N_c) (m_c - mu_c)                                       `merge_means`
score of class c = - |z - mu_c|^2                                                                 `nearest`

In these tables `values` are means. Tables of sums add with `Table.merge` instead.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fl.tensors.sparse import Table


def class_means(z: Tensor, y: Tensor, accumulate: torch.dtype | None = None) -> Table:
    """Return the mean embedding and the number of samples of each class in `y`. Gradients flow to `z`.

    Args:
        z: Embeddings (n, D).
        y: Classes (n,), int64.
        accumulate: Dtype of the sums; default: the dtype of `z`. The means have the dtype of `z`, the counts are int64.

    >>> table = class_means(torch.tensor([[1.0], [3.0], [7.0]]), torch.tensor([4, 4, 9]))
    >>> table.keys.tolist(), table.values.flatten().tolist(), table.counts.tolist()
    ([4, 9], [2.0, 7.0], [2, 1])
    """
    keys, index, counts = torch.unique(y, return_inverse=True, return_counts=True)
    embeddings = z.to(accumulate or z.dtype)
    sums = embeddings.new_zeros(len(keys), z.shape[1]).index_add(0, index, embeddings)
    return Table(keys, (sums / counts[:, None]).to(z.dtype), counts)


def prototypes(z: Tensor, y: Tensor) -> Table:
    """Return `class_means` for exact merging: summed in float64, counts as int32 (4 bytes per class in a message)."""
    means = class_means(z, y, torch.float64)
    return Table(means.keys, means.values, means.counts.int())


def first_rows(y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the classes in `y` (n,), ascending, and the position of the first row of each, int64 (C,) both.

    >>> first_rows(torch.tensor([4, 2, 4]))
    (tensor([2, 4]), tensor([1, 0]))
    """
    classes = y.unique()
    return classes, (y == classes[:, None]).int().argmax(1) if len(y) else classes


def merge_means(table: Table | None, increment: Table) -> Table:
    """Return the means after more samples were seen. `increment` describes the new samples only.

    The means keep the dtype of `increment`. Classes with count 0 are dropped. The mean of a class that `increment` does
    not contain keeps its bits.

    >>> old = prototypes(torch.tensor([[1.0], [1.0]]), torch.tensor([5, 5]))
    >>> new = merge_means(old, prototypes(torch.tensor([[4.0], [7.0]]), torch.tensor([5, 2])))
    >>> new.keys.tolist(), new.values.flatten().tolist(), new.counts.tolist()
    ([2, 5], [7.0, 2.0], [1, 3])
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
    """Return the squared Euclidean distances (B, K) between the rows of `z` (B, D) and `mu` (K, D).

    They are computed from differences, because |z|^2 - 2 z mu + |mu|^2 loses precision far from the origin.

    >>> squared_distances(torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0], [1.0, 0.0]])).tolist()
    [[25.0, 1.0]]
    """
    return torch.cdist(z, mu, compute_mode="donot_use_mm_for_euclid_dist").square()


def nearest(z: Tensor, table: Table | None, outputs: int) -> Tensor:
    """Return class scores (B, outputs) of embeddings `z` (B, D): minus the squared distance to each prototype.

    A class without a prototype scores 1 less than the farthest prototype, so it is never predicted and a loss stays
    finite. Without any prototype all scores are 0.
    """
    if table is None or not len(table.keys):
        return z.new_zeros(len(z), outputs)
    known = -squared_distances(z, table.values)
    scores = (known.amin(1, keepdim=True) - 1).repeat(1, outputs)
    scores[:, table.keys] = known
    return scores


def embed(net: Callable[[Tensor], Tensor], x: Tensor, batch: int) -> Tensor:
    """Return the embeddings (n, D) of `x` (n, ...) in batches of `batch` samples, without gradients; n may be 0."""
    with torch.no_grad():
        return torch.cat([net(x[a : a + batch]) for a in range(0, max(len(x), 1), batch)])
