"""The fixed tree in which the updates of a cohort are merged.

The tree is binary, with one leaf per position of the cohort. Its shape depends only on the cohort's size. So the sum
has the same bits whichever worker computes which part of it.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fl.method.reduction import Meta, Product, Reduction, WeightedMean
from fl.tensors.params import Params
from fl.tensors.stacked import sums_fast, weighted_sum
from fl.tensors.trees import leaves, replace_leaves, row, tree_map

Leaf = TypeVar("Leaf", Params, Tensor)


class Fold:
    """The fixed tree over positions 0..n-1.

    A node is merged with its sibling when both have arrived. A node at the right edge without a sibling moves up
    unchanged. None stands for a client without update: merge(None, x) = x.

    >>> from fl.method.reduction import Meta, Sum
    >>> fold = Fold(Sum(), 3)
    >>> for position in (2, 0, 1):
    ...     fold.add(0, position, torch.tensor([10.0**position]))
    >>> fold.finish()
    tensor([111.])

    Args:
        reduction: merges nodes and finishes the last one.
        n: number of positions.

    Attributes:
        reduction: merges nodes and finishes the last one.
        n: number of positions.
        height: level of the root.
        nodes: (level, k) -> accumulator of the nodes that wait for their sibling; O(log n) per contiguous range.
    """

    def __init__(self, reduction: Reduction, n: int):
        self.reduction, self.n = reduction, n
        self.height = max(0, n - 1).bit_length()
        self.nodes: dict[tuple[int, int], Any] = {}

    def add(self, level: int, k: int, acc: Any) -> None:
        """Add the accumulator of node (level, k); None if the node has no update."""
        while level < self.height:
            sibling = k ^ 1
            if sibling << level < self.n:
                if (level, sibling) not in self.nodes:
                    break
                other = self.nodes.pop((level, sibling))
                acc = self._merge(acc, other) if k < sibling else self._merge(other, acc)
            level, k = level + 1, k >> 1
        self.nodes[level, k] = acc

    def _merge(self, a: Any, b: Any) -> Any:
        if a is None or b is None:
            return b if a is None else a
        return self.reduction.merge(a, b)

    def lifted(self, value: Any, meta: Meta, count: int) -> Any:
        """Lift `count` stacked updates and return the node over them; see `stacked`."""
        reduction = self.reduction
        if type(reduction) is Product:
            return {k: Fold(part, self.n).lifted(value[k], meta, count) for k, part in reduction.parts.items()}
        factors = reduction.factors(meta) if isinstance(reduction, WeightedMean) else None
        if factors is None or not all(map(sums_fast, leaves(value))):
            return self.stacked(reduction.lift(value, meta), count, meta.owned)
        return replace_leaves(value, [weighted_sum(leaf, factors) for leaf in leaves(value)]), self.summed(factors)

    def stacked(self, accs: Any, count: int, owned: bool = True) -> Any:
        """Return the node over `count` consecutive leaves, stacked along the first axis of `accs`' tensors.

        The first position must be a multiple of a power of two that is at least `count`. Without `owned` nothing is
        written to the memory of `accs`.
        """
        if self.reduction.linear:
            return self._summed(accs, count, owned)
        many = count > 1
        if not owned:
            accs = tree_map(lambda leaf: leaf.clone(), accs)
        while count > 1:
            pairs = count // 2
            merged = self.reduction.merge(row(accs, slice(0, 2 * pairs, 2)), row(accs, slice(1, 2 * pairs, 2)))
            if count % 2:
                merged = tree_map(_joined, merged, row(accs, slice(count - 1, count)))
            accs, count = merged, count - pairs
        node = row(accs, 0)
        # a copy, because a view would keep the memory of all leaves
        return tree_map(lambda leaf: leaf.clone(), node) if many else node

    @staticmethod
    def _summed(accs: Any, count: int, owned: bool) -> Any:
        """Return `stacked` for a linear reduction: the same sums, computed in place from the second level on."""
        tensors, rest = leaves(accs), count
        with (
            torch.inference_mode()
        ):  # leaves of evaluations were made in this mode; saves a tenth of the time of small sums
            if not owned and rest > 1:
                tensors, rest = [_pairs(tensor) for tensor in tensors], rest - rest // 2
            while rest > 1:
                pairs, rest = rest // 2, rest - rest // 2
                evens = [tensor[::2] for tensor in tensors]
                for even, tensor in zip(evens, tensors):
                    even[:pairs].add_(tensor[1::2])
                tensors = evens  # the last one may have no sibling
        # a copy, because a view would keep the memory of all leaves
        copies = count > 1 or not owned
        return replace_leaves(accs, [tensor[0].clone() if copies else tensor[0] for tensor in tensors])

    @staticmethod
    def summed(values: Tensor) -> Tensor:
        """Return the sum () of values (C,), added in the order of `stacked`. NumPy, because its calls cost less.

        >>> Fold.summed(torch.tensor([1.0, 2.0, 4.0]))
        tensor(7.)
        """
        rest = np.zeros(1 << (len(values) - 1).bit_length(), values.numpy().dtype)  # zeros change no sum
        rest[: len(values)] = values.numpy()
        while len(rest) > 1:
            rest = rest[::2] + rest[1::2]
        return torch.from_numpy(rest.reshape(()))

    def add_stacked(self, start: int, count: int, node: Any) -> None:
        """Add the node that `stacked` returned for positions start..start+count-1."""
        level = (count - 1).bit_length()
        self.add(level, start >> level, node)

    def covered(self) -> list[tuple[int, int]]:
        """Return the ranges [a, b) of positions that have been added, ascending."""
        return sorted((k << level, min((k + 1) << level, self.n)) for level, k in self.nodes)

    def finish(self) -> Any:
        """Return the reduced value, None without updates. All positions must have been added."""
        if self.n == 0:
            return None
        acc = self.nodes[self.height, 0]
        return None if acc is None else self.reduction.finish(acc)


def _joined(a: Leaf, b: Leaf) -> Leaf:
    """Concatenate along the first axis."""
    if isinstance(a, Params):
        return Params(a.layout, tuple(torch.cat(pair) for pair in zip(a.buffers, b.buffers)))
    return torch.cat([a, b])


def _pairs(tensor: Tensor) -> Tensor:
    """Return the sums of neighbours along the first axis; an odd last one stays alone."""
    pairs, rest = len(tensor) // 2, len(tensor) % 2
    out = tensor.new_empty(pairs + rest, *tensor.shape[1:])
    torch.add(tensor[: 2 * pairs : 2], tensor[1::2], out=out[:pairs])
    if rest:
        out[-1] = tensor[-1]
    return out
