"""Sparse values: rows keyed by integers (`Table`) and some elements of a vector (`Sparse`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Table:
    """Rows keyed by integers: keys int64 (k,) ascending, values (k, ...), counts (k,). Prototypes by class, items by id."""

    keys: Tensor
    values: Tensor
    counts: Tensor

    def merge(self, other: Table) -> Table:
        """The union of the keys; values and counts of common keys are added."""
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
    """Some elements of a vector of `size`: positions int64 (k,) ascending, values (k,); both may have leading axes C."""

    positions: Tensor
    values: Tensor
    size: int

    def dense(self) -> Tensor:
        return self.values.new_zeros(*self.values.shape[:-1], self.size).scatter_(-1, self.positions, self.values)
