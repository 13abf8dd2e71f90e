"""Sparse values: rows with integer keys (`Table`) and a part of a vector (`Sparse`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Table:
    """Rows with integer keys, such as class prototypes or item embeddings.

    The sender decides what `values` mean. In a message they usually are means of `counts` samples
    (`fl.tensors.prototypes`); in an accumulator they are sums, which `merge` adds.

    Args:
        keys: int64 or int32 (k,), ascending.
        values: (k, ...), one row per key.
        counts: (k,), number of samples behind each row.
    """

    keys: Tensor
    values: Tensor
    counts: Tensor

    def merge(self, other: Table) -> Table:
        """Return the union of both tables; the values and counts of common keys are added.

        >>> a = Table(torch.tensor([1, 3]), torch.tensor([10.0, 30.0]), torch.tensor([1, 1]))
        >>> b = Table(torch.tensor([3, 4]), torch.tensor([5.0, 7.0]), torch.tensor([2, 1]))
        >>> both = a.merge(b)
        >>> both.keys.tolist(), both.values.tolist(), both.counts.tolist()
        ([1, 3, 4], [10.0, 35.0, 7.0], [1, 3, 1])
        """
        keys = torch.unique(torch.cat([self.keys, other.keys]))
        values = self.values.new_zeros(len(keys), *self.values.shape[1:])
        counts = self.counts.new_zeros(len(keys))
        for part in (self, other):
            at = torch.searchsorted(keys, part.keys)
            values.index_add_(0, at, part.values)
            counts.index_add_(0, at, part.counts)
        return Table(keys, values, counts)


@dataclass(frozen=True)
class Sparse:
    """Some elements of a vector. `positions` and `values` may have a leading client axis (C, k).

    Args:
        positions: int64 (k,), ascending.
        values: (k,), the elements at `positions`.
        size: Length of the vector.
    """

    positions: Tensor
    values: Tensor
    size: int

    def dense(self) -> Tensor:
        """Return the vector (..., size); elements that are not listed are 0.

        >>> Sparse(torch.tensor([0, 2]), torch.tensor([5.0, 6.0]), 4).dense().tolist()
        [5.0, 0.0, 6.0, 0.0]
        """
        return self.values.new_zeros(*self.values.shape[:-1], self.size).scatter_(-1, self.positions, self.values)
