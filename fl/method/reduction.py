"""How the updates of a cohort become one value: lift each, merge pairwise along a fixed tree, finish once.

    acc_i = lift(value_i, meta_i)        merge(acc, acc) -> acc        value = finish(acc)

The tree over cohort positions is binary with one leaf per client and depends on the cohort's size alone (`Fold`), so the
sum has the same bits whoever computes which part of it. An absent client is a missing leaf; merge(nothing, x) = x.
`lift` and `merge` marked `batched` also take C clients at once (a leading axis on every leaf), with the same arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fl.tensors.params import Params
from fl.tensors.sparse import Sparse, Table
from fl.tensors.trees import Tree, leaves, replace_leaves, row, tree_map


@dataclass(frozen=True)
class Meta:
    """What a reduction may know of an update. Numbers, or tensors (C,) for C clients at once."""

    client: int | Tensor
    num_examples: int | Tensor
    staleness: int | Tensor = 0
    owned: bool = False  # the value's memory may be written to
    spill: Callable[[Tensor], Any] | None = None  # writes a vector to scratch, returns an opener for `Collect`


class Reduction:
    """Base of reductions. `linear`: it only sums (what secure aggregation and privacy need); `batched`: see the module. One that
    is both adds leaf to leaf as it merges."""

    linear: ClassVar[bool] = False
    batched: ClassVar[bool] = False

    def lift(self, value: Tree, meta: Meta) -> Any:
        raise NotImplementedError

    def merge(self, a: Any, b: Any) -> Any:
        """a (earlier positions) and b; may use the memory of a."""
        raise NotImplementedError

    def finish(self, acc: Any) -> Any:
        return acc


def _scaled(tree: Tree, weight: float | Tensor, in_place: bool = False) -> Tree:
    def leaf(x):
        w = weight
        if isinstance(w, Tensor) and w.ndim and isinstance(x, Tensor):
            w = w.to(x.dtype).view(-1, *(1,) * (x.ndim - 1))
        return x.mul_(w) if in_place else x * w

    return tree_map(leaf, tree)


def _added(a: Tree, b: Tree) -> Tree:
    return tree_map(lambda x, y: x.add_(y), a, b)


def _joined(a: Params | Tensor, b: Params | Tensor) -> Params | Tensor:
    if isinstance(a, Params):
        return Params(a.layout, tuple(torch.cat(pair) for pair in zip(a.buffers, b.buffers)))
    return torch.cat([a, b])


@dataclass(frozen=True)
class Sum(Reduction):
    """sum_i value_i"""

    linear: ClassVar[bool] = True
    batched: ClassVar[bool] = True

    def lift(self, value: Tree, meta: Meta) -> Tree:
        return value if meta.owned else tree_map(lambda leaf: leaf.clone(), value)

    def merge(self, a: Tree, b: Tree) -> Tree:
        return _added(a, b)


@dataclass(frozen=True)
class WeightedMean(Reduction):
    """sum_i w_i value_i / sum_i w_i, with w_i = num_examples or 1."""

    weights: Literal["examples", "uniform"] = "examples"
    linear: ClassVar[bool] = True
    batched: ClassVar[bool] = True

    def __post_init__(self):
        if self.weights not in ("examples", "uniform"):
            raise ValueError(f"weights: {self.weights!r} is not one of ['examples', 'uniform']")

    def lift(self, value: Tree, meta: Meta) -> tuple[Tree, Tensor]:
        weight = self._weight(meta)
        return _scaled(value, weight if weight.ndim else float(weight), meta.owned), weight

    def merge(self, a, b):
        return _added(a[0], b[0]), a[1].add_(b[1])

    def factors(self, meta: Meta) -> Tensor | None:
        """(C,), for who adds up w_i value_i where the values are made; `None` for a kind of mean that lifts or merges otherwise."""
        plain = type(self).lift is WeightedMean.lift and type(self).merge is WeightedMean.merge
        return self._weight(meta) if plain else None

    def _weight(self, meta: Meta) -> Tensor:
        examples = torch.as_tensor(meta.num_examples, dtype=torch.float64)
        return torch.ones_like(examples) if self.weights == "uniform" else examples.clone()

    def finish(self, acc):
        total, weight = acc
        return _scaled(total, 1.0 / float(weight)) if weight > 0 else None


@dataclass(frozen=True)
class SparseMean(WeightedMean):
    """The weighted mean of sparse vectors (`Sparse`), what they leave out counted as zero, or of whole ones (`Params`); the
    value is dense, (size,)."""

    def lift(self, value: Sparse | Params, meta: Meta) -> tuple[Tree, Tensor]:
        if isinstance(value, Params):
            return super().lift(value.compact(), replace(meta, owned=False))
        return super().lift(value.dense(), replace(meta, owned=True))


@dataclass(frozen=True)
class ClassMean(Reduction):
    """Per key, the mean over clients weighted by counts: sum_i n_ik m_ik / sum_i n_ik, for keys that anyone sent.

    Takes and returns `Table(keys (k,), means (k, D), counts (k,))`; sums in float64.
    """

    linear: ClassVar[bool] = True

    def lift(self, value: Table, meta: Meta) -> Table:
        seen = value.counts > 0
        counts = value.counts[seen].double()
        return Table(value.keys[seen], value.values[seen].double() * counts[:, None], counts)

    def merge(self, a: Table, b: Table) -> Table:
        return a.merge(b)

    def finish(self, acc: Table) -> Table:
        return Table(acc.keys, acc.values / acc.counts[:, None], acc.counts)


@dataclass(frozen=True)
class Stack(Reduction):
    """The values themselves, as a list in the order of the tree, each with its Meta. Memory grows with the cohort."""

    def lift(self, value: Tree, meta: Meta) -> list:
        return [(value, Meta(int(meta.client), int(meta.num_examples), int(meta.staleness)))]

    def merge(self, a: list, b: list) -> list:
        return a + b


@dataclass(frozen=True)
class Collect(Reduction):
    """fn(matrix (n, block), weights (n,)) -> (block,) over all updates, coordinate block by coordinate block.

    For rules that need every update at once (median, trimmed mean, Krum with `blocks=False`). The only reduction whose
    cost grows with the cohort: rows go to scratch files, n x P x 4 bytes on disk, and come back `block` columns at a time.
    Takes and returns `Params` of one dtype.
    """

    fn: Callable[[Tensor, Tensor], Tensor] = field(default=lambda rows, weights: rows.mean(0))
    block: int = 65536

    def lift(self, value: Params, meta: Meta):
        return value.layout, [(meta.spill(value.compact()), float(meta.num_examples))]

    def merge(self, a, b):
        return a[0], a[1] + b[1]

    def finish(self, acc) -> Params:
        layout, rows = acc
        vectors = [spilled.open() for spilled, _ in rows]
        weights = torch.tensor([w for _, w in rows], dtype=torch.float64)
        out = torch.empty(layout.numel, dtype=vectors[0].dtype)
        for a in range(0, layout.numel, self.block):
            b = min(a + self.block, layout.numel)
            out[a:b] = self.fn(torch.stack([v[a:b] for v in vectors]), weights)
        return Params.expand(layout, out)


@dataclass(frozen=True)
class Product(Reduction):
    """One reduction per group of the update; the value is a dict by group, `None` if a part has nothing to tell."""

    parts: Mapping[str, Reduction]

    @property
    def linear(self) -> bool:  # type: ignore[override]
        return all(r.linear for r in self.parts.values())

    @property
    def batched(self) -> bool:  # type: ignore[override]
        return all(r.batched for r in self.parts.values())

    def lift(self, value: Mapping[str, Tree], meta: Meta) -> dict:
        return {name: r.lift(value[name], meta) for name, r in self.parts.items()}

    def merge(self, a: dict, b: dict) -> dict:
        return {name: r.merge(a[name], b[name]) for name, r in self.parts.items()}

    def finish(self, acc: dict) -> dict:
        values = {name: r.finish(acc[name]) for name, r in self.parts.items()}
        return None if any(v is None for v in values.values()) else values


class Fold:
    """The fixed tree over positions 0..n-1: node (level, k) covers positions k 2^level .. (k+1) 2^level - 1.

    `add` merges a node with its sibling as soon as both are here; a node without a sibling (the right edge) is handed up
    as it is. `nodes` is what cannot be merged yet: O(log n) per contiguous run of positions.
    """

    def __init__(self, reduction: Reduction, n: int):
        self.reduction, self.n = reduction, n
        self.height = max(0, n - 1).bit_length()
        self.nodes: dict[tuple[int, int], Any] = {}

    def add(self, level: int, k: int, acc: Any) -> None:
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

    def stacked(self, accs: Any, count: int) -> Any:
        """The node over `count` consecutive leaves, stacked; they begin at a multiple of a power of two >= count."""
        many = count > 1
        if self.reduction.linear:
            return self._summed(accs, count)
        while count > 1:
            pairs = count // 2
            merged = self.reduction.merge(row(accs, slice(0, 2 * pairs, 2)), row(accs, slice(1, 2 * pairs, 2)))
            if count % 2:
                merged = tree_map(_joined, merged, row(accs, slice(count - 1, count)))
            accs, count = merged, count - pairs
        node = row(accs, 0)
        # a copy: a view would keep the memory of all the leaves
        return tree_map(lambda leaf: leaf.clone(), node) if many else node

    @staticmethod
    def _summed(accs: Any, count: int) -> Any:
        """`stacked` where merging adds leaf to leaf: the same sums, in place."""
        tensors, rest = leaves(accs), count
        with torch.inference_mode():  # as evaluations' leaves were made in; a tenth of the time of small sums
            while rest > 1:
                pairs, rest = rest // 2, rest - rest // 2
                evens = [tensor[::2] for tensor in tensors]
                for even, tensor in zip(evens, tensors):
                    even[:pairs].add_(tensor[1::2])
                tensors = evens  # the last as it is, if it is without a sibling
        # a view would keep the memory of all the leaves
        return replace_leaves(accs, [tensor[0].clone() if count > 1 else tensor[0] for tensor in tensors])

    @staticmethod
    def summed(values: Tensor) -> Tensor:
        """(): the sum of values (C,) as `stacked` adds. (NumPy's calls are short.)"""
        rest = values.numpy().copy()
        while len(rest) > 1:
            rest, odds = rest[::2], rest[1::2]
            rest[: len(odds)] += odds
        return torch.from_numpy(rest).sum()

    def add_stacked(self, start: int, count: int, node: Any) -> None:
        """Add the `stacked` node over positions start..start+count-1."""
        level = (count - 1).bit_length()
        self.add(level, start >> level, node)

    def covered(self) -> list[tuple[int, int]]:
        """The position ranges [a, b) whose leaves are here."""
        return sorted((k << level, min((k + 1) << level, self.n)) for level, k in self.nodes)

    def finish(self) -> Any:
        """The reduced value, `None` if every leaf is empty. All positions must have been added."""
        if self.n == 0:
            return None
        acc = self.nodes[self.height, 0]
        return None if acc is None else self.reduction.finish(acc)
