"""Named tensors and their algebra.

A `Params` is an ordered mapping name -> tensor whose tensors are views of one flat buffer per dtype, so that a sum,
a copy or a checkpoint of a whole model is one operation:

    buffer   |--- w (out, in) ---|pad|- b (out) -|pad|        every tensor starts on a 64-byte boundary; pads hold zeros

Leading axes of the buffers are batch axes: buffers of shape (C, P) hold the parameters of C clients, every view then is
(C, *shape), and the same arithmetic serves one client or many. An operand without batch axes broadcasts.

    p + q   p - q   2.0 * p   p / q   sqrt(p)   sign(p)   norm(p)       scalars may be tensors (C,): one number a client
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor

ALIGNMENT = 64  # bytes; kernels choose their code path by alignment, and so their last bits


@dataclass(frozen=True)
class Entry:
    """Where one tensor lies: `buffer` (which dtype's), `offset` and `numel` in elements."""

    name: str
    shape: tuple[int, ...]
    buffer: int
    offset: int
    numel: int


@dataclass(frozen=True, eq=False)
class Layout:
    """Names, shapes and places of the tensors of a `Params`; one object per distinct layout (`Layout.of`)."""

    entries: Mapping[str, Entry]
    dtypes: tuple[torch.dtype, ...]
    lengths: tuple[int, ...]  # padded elements per buffer
    gaps: tuple[tuple[tuple[int, int], ...], ...]  # pads per buffer
    spec: str  # JSON of (name, shape, dtype), the layout's identity

    @staticmethod
    def of(tensors: Iterable[tuple[str, tuple[int, ...], torch.dtype]]) -> Layout:
        return _layout(tuple((name, tuple(shape), dtype) for name, shape, dtype in tensors))

    @staticmethod
    @functools.cache
    def from_spec(spec: str) -> Layout:
        return Layout.of((name, tuple(shape), getattr(torch, dtype)) for name, shape, dtype in json.loads(spec))

    @property
    def numel(self) -> int:
        """Elements, pads not counted."""
        return sum(e.numel for e in self.entries.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the bare tensors, pads not counted."""
        return sum(e.numel * self.dtypes[e.buffer].itemsize for e in self.entries.values())

    def empty(self, *batch: int) -> Params:
        return Params(self, tuple(torch.empty(*batch, n, dtype=t) for n, t in zip(self.lengths, self.dtypes)))

    def zeros(self, *batch: int) -> Params:
        return Params(self, tuple(torch.zeros(*batch, n, dtype=t) for n, t in zip(self.lengths, self.dtypes)))

    def __reduce__(self) -> tuple[Callable[[str], Layout], tuple[str]]:
        return Layout.from_spec, (self.spec,)


@functools.cache
def _layout(tensors: tuple[tuple[str, tuple[int, ...], torch.dtype], ...]) -> Layout:
    dtypes = tuple(dict.fromkeys(dtype for _, _, dtype in tensors))
    lengths, entries = [0] * len(dtypes), {}
    gaps: list[list[tuple[int, int]]] = [[] for _ in dtypes]
    for name, shape, dtype in tensors:
        k, numel = dtypes.index(dtype), math.prod(shape)
        step = ALIGNMENT // dtype.itemsize
        entries[name] = Entry(name, shape, k, lengths[k], numel)
        end = lengths[k] + numel
        lengths[k] = -(-end // step) * step
        if end < lengths[k]:
            gaps[k].append((end, lengths[k]))
    if len(entries) != len(tensors):
        raise ValueError(f"tensor names repeat: {[name for name, _, _ in tensors]}")
    spec = json.dumps([[name, list(shape), str(dtype).removeprefix("torch.")] for name, shape, dtype in tensors])
    return Layout(entries, dtypes, tuple(lengths), tuple(map(tuple, gaps)), spec)


class Params(Mapping[str, Tensor]):
    """Ordered mapping name -> tensor (a view of `buffers`); see the module's docstring for the algebra."""

    __slots__ = ("layout", "buffers")

    def __init__(self, layout: Layout, buffers: tuple[Tensor, ...]):
        self.layout, self.buffers = layout, buffers

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> Params:
        """A copy of `tensors`, packed."""
        params = Layout.of((n, tuple(t.shape), t.dtype) for n, t in tensors.items()).zeros()
        for name, tensor in tensors.items():
            params[name].copy_(tensor.detach())
        return params

    # -- mapping -------------------------------------------------------------------------------------------------
    def __getitem__(self, name: str) -> Tensor:
        e = self.layout.entries[name]
        flat = self.buffers[e.buffer].narrow(-1, e.offset, e.numel)
        return flat.view(flat.shape[:-1] + e.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.entries)

    def __len__(self) -> int:
        return len(self.layout.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.layout.entries

    def __repr__(self) -> str:
        batch = f"batch={tuple(self.batch)}, " if self.batch else ""
        return f"Params({batch}{', '.join(f'{n}{list(e.shape)}' for n, e in self.layout.entries.items())})"

    # -- shape ---------------------------------------------------------------------------------------------------
    @property
    def batch(self) -> torch.Size:
        """Leading axes: () for one client, (C,) for C clients."""
        return self.buffers[0].shape[:-1] if self.buffers else torch.Size()

    @property
    def device(self) -> torch.device:
        return self.buffers[0].device if self.buffers else torch.device("cpu")

    @property
    def numel(self) -> int:
        return self.layout.numel

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors of one client, pads not counted."""
        return self.layout.nbytes

    def row(self, index: int | slice | Tensor) -> Params:
        """Client `index` of batched parameters, or several clients by a slice or an index tensor; views, except for tensors."""
        return Params(self.layout, tuple(b[index] for b in self.buffers))

    def to(self, device: torch.device | str) -> Params:
        """The parameters on a device; themselves if they are there."""
        return Params(self.layout, tuple(b.to(device) for b in self.buffers))

    def clone(self) -> Params:
        return Params(self.layout, tuple(b.clone() for b in self.buffers))

    def select(self, patterns: Iterable[str] | None) -> Params:
        """The tensors whose names match one of the glob `patterns`, packed anew (a copy; `None` is all, no copy)."""
        if patterns is None:
            return self
        names = match(self, patterns)
        if len(names) == len(self):
            return self
        entries = self.layout.entries
        layout = Layout.of((n, entries[n].shape, self.layout.dtypes[entries[n].buffer]) for n in names)
        return layout.zeros(*self.batch).copy_(self)

    def replace(self, other: Mapping[str, Tensor]) -> Params:
        """A copy with the tensors of `other` in place of those of the same name."""
        return self.clone().copy_(other, names=other)

    def added(self, *changes: Params) -> Params:
        """A copy with changes of some of its tensors added."""
        out = self
        for change in changes:
            out = out.replace(out.select(list(change)) + change)
        return out

    def compact(self) -> Tensor:
        """All elements without pads, (*batch, numel); a view where there are no pads. One dtype only."""
        if len(self.buffers) != 1:
            raise ValueError(f"compact() takes parameters of one dtype, got {self.layout.dtypes}")
        if not self.layout.gaps[0]:
            return self.buffers[0]
        entries = self.layout.entries.values()
        return torch.cat([self.buffers[0].narrow(-1, e.offset, e.numel) for e in entries], dim=-1)

    @staticmethod
    def expand(layout: Layout, flat: Tensor) -> Params:
        """The inverse of `compact`: (*batch, numel) -> parameters."""
        if not layout.gaps[0]:
            return Params(layout, (flat,))
        params, at = layout.zeros(*flat.shape[:-1]), 0
        for e in layout.entries.values():
            params.buffers[0].narrow(-1, e.offset, e.numel).copy_(flat.narrow(-1, at, e.numel))
            at += e.numel
        return params

    # -- in place ------------------------------------------------------------------------------------------------
    def copy_(self, other: Mapping[str, Tensor], names: Iterable[str] | None = None) -> Params:
        """Take values from `other`: all of them if the layouts agree, else the tensors in `names` (default: ours)."""
        if isinstance(other, Params) and other.layout is self.layout:
            for mine, theirs in zip(self.buffers, other.buffers):
                mine.copy_(theirs)
        else:
            for name in self if names is None else names:
                self[name].copy_(other[name])
        return self

    def add_(self, other: Params, alpha: float = 1.0) -> Params:
        """self <- self + alpha * other."""
        for mine, theirs in zip(self.buffers, other.buffers):
            mine.add_(theirs, alpha=alpha)
        return self

    def sub_(self, other: Params) -> Params:
        """self <- self - other."""
        for mine, theirs in zip(self.buffers, other.buffers):
            mine.sub_(theirs)
        return self

    def mul_(self, factor: float | Tensor) -> Params:
        for mine in self.buffers:
            mine.mul_(_per_client(factor, mine))
        return self

    def zero_(self) -> Params:
        for mine in self.buffers:
            mine.zero_()
        return self

    # -- algebra -------------------------------------------------------------------------------------------------
    def __add__(self, other: Params | float | Tensor) -> Params:
        return _binary(torch.add, self, other)

    def __sub__(self, other: Params | float | Tensor) -> Params:
        return _binary(torch.sub, self, other)

    def __mul__(self, other: Params | float | Tensor) -> Params:
        return _binary(torch.mul, self, other)

    def __truediv__(self, other: Params | float | Tensor) -> Params:
        return _binary(torch.div, self, other)

    def __rsub__(self, other: float | Tensor) -> Params:
        return -self + other

    def __neg__(self) -> Params:
        return elementwise(torch.neg, self)

    __radd__, __rmul__ = __add__, __mul__


NOTHING = Params(Layout.of(()), ())


def elementwise(fn: Callable[..., Tensor], first: Params, *rest: Params) -> Params:
    """fn applied to the buffers of trees of one layout; fn must work element by element."""
    for other in rest:
        if other.layout is not first.layout:
            raise ValueError(f"parameters differ: {difference(first, other)}")
    out = tuple(fn(*buffers) for buffers in zip(first.buffers, *(p.buffers for p in rest)))
    for buffer, gaps in zip(out, first.layout.gaps):
        for a, b in gaps:  # fn(0) need not be 0, and pads must stay neutral in norms and sums
            buffer[..., a:b] = 0
    return Params(first.layout, out)


def _binary(fn: Callable[[Tensor, Tensor], Tensor], p: Params, q: Params | float | Tensor) -> Params:
    if isinstance(q, Params):
        return elementwise(fn, p, q)
    return elementwise(lambda b: fn(b, _per_client(q, b)), p)


def _per_client(factor: float | Tensor, buffer: Tensor) -> float | Tensor:
    """A number stays; a tensor (C,) becomes (C, 1), so that each client's parameters meet its own number."""
    if isinstance(factor, Tensor) and factor.ndim:
        return factor.to(buffer.dtype).reshape(*factor.shape, *(1,) * max(buffer.ndim - factor.ndim, 1))
    return factor


def match(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """The `names` matching one of the glob `patterns`, in order; a pattern that matches none is an error."""
    names, patterns = list(names), list(patterns)
    for pattern in patterns:
        if not any(fnmatchcase(n, pattern) for n in names):
            raise ValueError(f"pattern {pattern!r} matches no parameter; there are {names}")
    return [n for n in names if any(fnmatchcase(n, p) for p in patterns)]


def difference(p: Params, q: Params) -> str:
    """In words, how two layouts differ."""
    a, b = ({n: e.shape for n, e in x.layout.entries.items()} for x in (p, q))
    rows = [f"{n}: {a.get(n)} and {b.get(n)}" for n in {**a, **b} if a.get(n) != b.get(n)]
    return "; ".join(rows) or f"order or dtype, {p.layout.spec} and {q.layout.spec}"


def zeros_like(p: Params) -> Params:
    return p.layout.zeros(*p.batch)


def sign(p: Params) -> Params:
    return elementwise(torch.sign, p)


def sqrt(p: Params) -> Params:
    return elementwise(torch.sqrt, p)


def dot(p: Params, q: Params) -> Tensor:
    """Inner product over all tensors: () or (C,)."""
    return sum(((a * b).sum(-1) for a, b in zip(p.buffers, q.buffers)), torch.zeros(()))


def norm(p: Params) -> Tensor:
    """Euclidean norm over all tensors: () or (C,)."""
    return torch.sqrt(dot(p, p))


def clipped(p: Params, bound: float) -> Params:
    """`p` scaled down to a norm of at most `bound`, each client by itself: p * min(1, bound / |p|)."""
    return p * (bound / norm(p).clamp(min=bound))


def join(*parts: Params) -> Params:
    """The tensors of all parts as one; of a name in several the last part's. Batch axes are broadcast."""
    owner = {name: part for part in parts for name in part}
    batch = max((part.batch for part in parts), key=len)
    entries = [(name, part.layout.entries[name], part.layout.dtypes) for name, part in owner.items()]
    joined = Layout.of((name, entry.shape, dtypes[entry.buffer]) for name, entry, dtypes in entries).zeros(*batch)
    for name, part in owner.items():
        joined[name].copy_(part[name])
    return joined
