"""Reductions: how the updates of a cohort become one value.

    acc_i = lift(value_i, meta_i)        merge(acc, acc) -> acc        value = finish(acc)

Each update is lifted, the accumulators are merged pairwise in a fixed tree (fl/method/fold.py), and the last one is
finished. A client without update is left out of the tree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from fl.checks import one_of
from fl.tensors.params import Layout, Params
from fl.tensors.sparse import Sparse, Table
from fl.tensors.trees import Tree, tree_map

if TYPE_CHECKING:
    from fl.communication.transmit import Sizes

Accumulator = Any  # what `lift` returns; each reduction has its own type


class SpilledVector(Protocol):
    """A vector in a scratch file."""

    def open(self) -> Tensor:
        """Return the vector, (n,), mapped from its file."""
        ...


@dataclass(frozen=True)
class Meta:
    """What a reduction knows about an update. With C clients each number is a tensor (C,).

    Attributes:
        client: the client's id.
        num_examples: number of training samples of the client.
        staleness: server steps since the client's broadcast, for asynchronous servers; else 0.
        owned: whether the reduction may write to the update's memory.
        spill: writes a vector (n,) to scratch and returns a handle to it; only `Collect` uses it.
    """

    client: int | Tensor
    num_examples: int | Tensor
    staleness: int | Tensor = 0
    owned: bool = False
    spill: Callable[[Tensor], SpilledVector] | None = None


class Reduction:
    """Base of reductions.

    A reduction that is linear and batched must merge by adding accumulators leaf by leaf.

    Attributes:
        linear: whether it only sums; secure aggregation and privacy require this.
        batched: whether `lift` and `merge` also take C clients at once (a leading axis C on every leaf), with the same
            arithmetic. Accumulators of C clients may share the update's memory: `Fold.stacked` does not write to it.
        integer: whether accumulators are integers. Then `lift` works on the CPU, and NaN and infinity are looked for in
            the updates, because no accumulator shows them.
    """

    linear: ClassVar[bool] = False
    batched: ClassVar[bool] = False
    integer: ClassVar[bool] = False

    def lift(self, value: Tree, meta: Meta) -> Accumulator:
        """Return the accumulator of one update. It may use the update's memory if `meta.owned`."""
        raise NotImplementedError

    def merge(self, a: Accumulator, b: Accumulator) -> Accumulator:
        """Return the accumulator of a and b. Positions in a come before those in b. It may use the memory of a."""
        raise NotImplementedError

    def finish(self, acc: Accumulator) -> Any:
        """Return the reduced value. Default: the accumulator. None means that there is nothing to learn from."""
        return acc

    def sizes(self, groups: Mapping[str, Tree], sizes: Mapping[str, Sizes], stacked: bool) -> Mapping[str, Sizes]:
        """Return the sizes of the messages of an update by group. Default: those of the codec.

        Args:
            groups: the groups that arrived.
            sizes: what each took with the codec.
            stacked: whether each leaf has a leading axis of clients.
        """
        return sizes


def _scaled(tree: Tree, weight: float | Tensor, in_place: bool = False) -> Tree:
    def leaf(x: Params | Tensor) -> Params | Tensor:
        w = weight
        if isinstance(w, Tensor) and w.ndim and isinstance(x, Tensor):
            w = w.to(x.dtype).view(-1, *(1,) * (x.ndim - 1))
        return x.mul_(w) if in_place else x * w

    return tree_map(leaf, tree)


def _together(meta: Meta) -> bool:
    """Whether an update is that of several clients, stacked."""
    return isinstance(meta.client, Tensor) and meta.client.ndim > 0


def _added(a: Tree, b: Tree) -> Tree:
    return tree_map(lambda x, y: x.add_(y), a, b)


@dataclass(frozen=True)
class Sum(Reduction):
    """The sum of the updates: sum_i value_i.

    >>> Sum().merge(torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0]))
    tensor([11., 22.])
    """

    linear: ClassVar[bool] = True
    batched: ClassVar[bool] = True

    def lift(self, value: Tree, meta: Meta) -> Tree:
        return value if meta.owned or _together(meta) else tree_map(lambda leaf: leaf.clone(), value)

    def merge(self, a: Tree, b: Tree) -> Tree:
        return _added(a, b)


@dataclass(frozen=True)
class WeightedMean(Reduction):
    """The weighted mean of the updates: sum_i w_i value_i / sum_i w_i. None if all weights are 0.

    >>> mean = WeightedMean()
    >>> one = mean.lift(torch.tensor([1.0, 2.0]), Meta(client=0, num_examples=1))
    >>> two = mean.lift(torch.tensor([5.0, 6.0]), Meta(client=1, num_examples=3))
    >>> mean.finish(mean.merge(one, two))
    tensor([4., 5.])

    Args:
        weights: w_i is the number of training samples ("examples"), or 1 ("uniform").
    """

    weights: Literal["examples", "uniform"] = "examples"
    linear: ClassVar[bool] = True
    batched: ClassVar[bool] = True

    def __post_init__(self) -> None:
        one_of(("examples", "uniform"), weights=self.weights)

    def lift(self, value: Tree, meta: Meta) -> tuple[Tree, Tensor]:
        weight = self._weight(meta)
        if _together(meta) and bool((weight == 1).all()):
            return value, weight
        return _scaled(value, weight if weight.ndim else float(weight), meta.owned), weight

    def merge(self, a: tuple[Tree, Tensor], b: tuple[Tree, Tensor]) -> tuple[Tree, Tensor]:
        return _added(a[0], b[0]), a[1].add_(b[1])

    def factors(self, meta: Meta) -> Tensor | None:
        """Return the weights w_i, (C,), for kernels that sum w_i value_i. None if a subclass sums something else."""
        return self._weight(meta) if self.plain else None

    @property
    def plain(self) -> bool:
        """Whether it sums w_i value_i; a subclass may sum something else."""
        return type(self).lift is WeightedMean.lift and type(self).merge is WeightedMean.merge

    def _weight(self, meta: Meta) -> Tensor:
        n = meta.num_examples
        examples = n.double() if isinstance(n, Tensor) else torch.tensor(n, dtype=torch.float64)
        if self.weights == "uniform":
            return torch.ones_like(examples)
        return examples.clone() if examples is n else examples

    def finish(self, acc: tuple[Tree, Tensor]) -> Tree:
        total, weight = acc
        whole = float(weight)
        return _scaled(total, 1.0 / whole) if whole > 0 else None


@dataclass(frozen=True)
class SparseMean(WeightedMean):
    """The weighted mean of vectors of `size` elements, as a dense tensor (size,).

    Updates are `Sparse` vectors, whose missing elements count as zero, or whole `Params`.

    >>> mean = SparseMean()
    >>> one = mean.lift(Sparse(torch.tensor([1]), torch.tensor([8.0]), size=3), Meta(client=0, num_examples=1))
    >>> two = mean.lift(Sparse(torch.tensor([0, 1]), torch.tensor([4.0, 4.0]), size=3), Meta(client=1, num_examples=3))
    >>> mean.finish(mean.merge(one, two))
    tensor([3., 5., 0.])

    Args:
        weights: w_i is the number of training samples ("examples"), or 1 ("uniform").
    """

    def lift(self, value: Sparse | Params, meta: Meta) -> tuple[Tree, Tensor]:
        if isinstance(value, Params):
            return super().lift(value.compact(), replace(meta, owned=False))
        return super().lift(value.dense(), replace(meta, owned=True))


@dataclass(frozen=True)
class ClassMean(Reduction):
    """For each key k, such as a class, the weighted mean over clients: sum_i n_ik m_ik / sum_i n_ik.

    Takes and returns `Table(keys (K,), means (K, D), counts (K,))`. Keys without count are left out. Sums in float64.

    >>> rule, classes = ClassMean(), torch.tensor([0, 1])
    >>> one = Table(classes, torch.tensor([[1.0], [2.0]]), torch.tensor([1, 0]))
    >>> two = Table(classes, torch.tensor([[5.0], [6.0]]), torch.tensor([3, 2]))
    >>> accs = [rule.lift(table, Meta(client=i, num_examples=1)) for i, table in enumerate([one, two])]
    >>> rule.finish(rule.merge(*accs)).values.tolist()
    [[4.0], [6.0]]

    Args:
        weights: n_ik is the client's count of key k ("examples"), or 1 for every client that has the key ("uniform").
            The counts of the result are the sums of n_ik.
    """

    weights: Literal["examples", "uniform"] = "examples"
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        one_of(("examples", "uniform"), weights=self.weights)

    def lift(self, value: Table, meta: Meta) -> Table:
        seen = value.counts > 0
        counts = value.counts[seen].double()
        if self.weights == "uniform":
            counts = torch.ones_like(counts)
        return Table(value.keys[seen], value.values[seen].double() * counts[:, None], counts)

    def merge(self, a: Table, b: Table) -> Table:
        return a.merge(b)

    def finish(self, acc: Table) -> Table:
        return Table(acc.keys, acc.values / acc.counts[:, None], acc.counts)


@dataclass(frozen=True)
class RowMean(Reduction):
    """The mean change of the rows of a matrix. Each client sends a `Table` of the rows that it changed.

    `over="clients"`: sum_i w_i r_ij / sum_i w_i, where a row that a client does not send is 0. `over="senders"`: the
    sums run over the clients that send row j. Takes and returns `Table`; the counts of the result are the sums of the
    weights of the senders. Sums in float64. None if all weights are 0.

    >>> clients, senders = RowMean(over="clients"), RowMean(over="senders")
    >>> def table(keys, rows):
    ...     return Table(torch.tensor(keys), torch.tensor(rows), torch.ones(len(keys)))
    >>> one, two = table([0, 2], [[2.0], [4.0]]), table([2], [[8.0]])
    >>> for rule in (clients, senders):
    ...     a, b = (rule.lift(t, Meta(client=i, num_examples=5)) for i, t in enumerate((one, two)))
    ...     rule.finish(rule.merge(a, b)).values.tolist()
    [[1.0], [6.0]]
    [[2.0], [6.0]]

    Args:
        over: clients whose weights a row is divided by: all ("clients") or those that send it ("senders").
        weights: w_i is 1 ("uniform") or the number of training samples ("examples").
    """

    over: Literal["clients", "senders"] = "clients"
    weights: Literal["examples", "uniform"] = "uniform"
    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        one_of(("clients", "senders"), over=self.over)
        one_of(("examples", "uniform"), weights=self.weights)

    def lift(self, value: Table, meta: Meta) -> tuple[Table, Tensor]:
        weight = 1.0 if self.weights == "uniform" else float(meta.num_examples)
        counts = torch.full((len(value.keys),), weight, dtype=torch.float64, device=value.values.device)
        rows = Table(value.keys.long(), value.values.double() * weight, counts)
        return rows, torch.tensor(weight, dtype=torch.float64)

    def merge(self, a: tuple[Table, Tensor], b: tuple[Table, Tensor]) -> tuple[Table, Tensor]:
        return a[0].merge(b[0]), a[1] + b[1]

    def finish(self, acc: tuple[Table, Tensor]) -> Table | None:
        rows, weight = acc
        if not weight > 0:
            return None
        divisor = weight if self.over == "clients" else rows.counts.clamp(min=torch.finfo(torch.float64).tiny)
        return Table(rows.keys, rows.values / divisor.reshape(-1, *(1,) * (rows.values.ndim - 1)), rows.counts)


@dataclass(frozen=True)
class Stack(Reduction):
    """The updates themselves: a list of (update, Meta) in the order of the tree. Memory grows with the cohort.

    >>> Stack().lift("update", Meta(client=7, num_examples=3))
    [('update', Meta(client=7, num_examples=3, staleness=0, owned=False, spill=None))]
    """

    def lift(self, value: Tree, meta: Meta) -> list[tuple[Tree, Meta]]:
        return [(value, Meta(int(meta.client), int(meta.num_examples), int(meta.staleness)))]

    def merge(self, a: list[tuple[Tree, Meta]], b: list[tuple[Tree, Meta]]) -> list[tuple[Tree, Meta]]:
        return a + b


Spilled = tuple[Layout, list[tuple[SpilledVector, float]]]  # layout, (vector, number of training samples) by client


@dataclass(frozen=True)
class Collect(Reduction):
    """A function of all updates at each coordinate, such as the median or the trimmed mean.

    Takes and returns `Params` of one dtype. Updates go to scratch files (n x P x 4 bytes for n clients and P float32
    parameters) and come back `block` coordinates at a time.

    Args:
        fn: (updates (n, block), numbers of training samples (n,)) -> reduced values (block,). Default: the mean.
            The memory of the updates is used again by the next call.
        block: number of coordinates per call of `fn`, positive.
    """

    fn: Callable[[Tensor, Tensor], Tensor] = field(default=lambda rows, weights: rows.mean(0))
    block: int = 65536

    def lift(self, value: Params, meta: Meta) -> Spilled:
        assert meta.spill is not None, "the engine gives each update a spill"
        return value.layout, [(meta.spill(value.compact()), float(meta.num_examples))]

    def merge(self, a: Spilled, b: Spilled) -> Spilled:
        return a[0], a[1] + b[1]

    def finish(self, acc: Spilled) -> Params:
        layout, rows = acc
        vectors = [spilled.open() for spilled, _ in rows]
        weights = torch.tensor([w for _, w in rows], dtype=torch.float64)
        out = torch.empty(layout.numel, dtype=vectors[0].dtype)
        memory = torch.empty(len(vectors) * min(self.block, layout.numel), dtype=out.dtype)  # new memory costs time
        for a in range(0, layout.numel, self.block):
            b = min(a + self.block, layout.numel)
            block = memory[: len(vectors) * (b - a)].view(len(vectors), b - a)
            out[a:b] = self.fn(torch.stack([v[a:b] for v in vectors], out=block), weights)
        return Params.expand(layout, out)


@dataclass(frozen=True)
class GroupReduction(Reduction):
    """Base of reductions of whole updates, whose value is a dict by group.

    Args:
        parts: group -> the reduction that the strategy asked for.
    """

    parts: Mapping[str, Reduction]


@dataclass(frozen=True)
class Product(GroupReduction):
    """One reduction per group of the update. The value is a dict by group; None if the value of a group is None.

    Args:
        parts: group -> reduction.
    """

    @property
    def linear(self) -> bool:  # type: ignore[override]  # depends on the parts
        """Whether all parts are linear."""
        return all(r.linear for r in self.parts.values())

    @property
    def batched(self) -> bool:  # type: ignore[override]  # depends on the parts
        """Whether all parts are batched."""
        return all(r.batched for r in self.parts.values())

    def lift(self, value: Mapping[str, Tree], meta: Meta) -> dict[str, Accumulator]:
        return {name: r.lift(value[name], meta) for name, r in self.parts.items()}

    def merge(self, a: dict[str, Accumulator], b: dict[str, Accumulator]) -> dict[str, Accumulator]:
        return {name: r.merge(a[name], b[name]) for name, r in self.parts.items()}

    def finish(self, acc: dict[str, Accumulator]) -> dict[str, Any] | None:
        values = {name: r.finish(acc[name]) for name, r in self.parts.items()}
        return None if any(v is None for v in values.values()) else values
