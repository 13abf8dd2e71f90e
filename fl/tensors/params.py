"""Named tensors and their algebra.

A `Params` is an ordered mapping name -> tensor. Its tensors are views of one flat buffer per dtype, so that a sum, a
copy or a checkpoint of a whole model is one operation:

    buffer   |--- w (out, in) ---|pad|- b (out) -|pad|     each tensor starts on a 64-byte boundary; padding holds zeros

Leading axes of the buffers are batch axes. Buffers of shape (C, P) hold the parameters of C clients, and each view has
shape (C, *shape). The same arithmetic works for one client and for many; an operand without batch axes broadcasts.

    p + q   p - q   2.0 * p   p / q   sqrt(p)   sign(p)   norm(p)    a factor of shape (C,) holds one number per client

>>> p = Params.of({"w": torch.ones(2, 2), "b": torch.zeros(2)})
>>> (2 * p + 1)["w"].tolist()
[[3.0, 3.0], [3.0, 3.0]]
>>> float(norm(p))
2.0
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 64  # bytes; kernels choose their code path by alignment, and the path decides the last bits


@dataclass(frozen=True)
class Entry:
    """Position of one tensor: the index of its buffer, and its offset and length in elements."""

    name: str
    shape: tuple[int, ...]
    buffer: int
    offset: int
    numel: int


@dataclass(frozen=True, eq=False)
class Layout:
    """Names, shapes and positions of the tensors of a `Params`. Equal layouts are the same object (`Layout.of`)."""

    entries: Mapping[str, Entry]
    dtypes: tuple[torch.dtype, ...]
    lengths: tuple[int, ...]  # elements per buffer, padding included
    gaps: tuple[tuple[tuple[int, int], ...], ...]  # padded intervals per buffer
    spec: str  # JSON of (name, shape, dtype); identifies the layout

    @staticmethod
    def of(tensors: Iterable[tuple[str, tuple[int, ...], torch.dtype]]) -> Layout:
        """Return the layout of tensors given as (name, shape, dtype). A repeated name is a `ValueError`."""
        return _layout(tuple((name, tuple(shape), dtype) for name, shape, dtype in tensors))

    @staticmethod
    @functools.cache
    def from_spec(spec: str) -> Layout:
        """Return the layout that a JSON `spec` describes."""
        return Layout.of((name, tuple(shape), getattr(torch, dtype)) for name, shape, dtype in json.loads(spec))

    @property
    def numel(self) -> int:
        """Number of elements, without padding."""
        return sum(e.numel for e in self.entries.values())

    @property
    def nbytes(self) -> int:
        """Size of the tensors in bytes, without padding."""
        return sum(e.numel * self.dtypes[e.buffer].itemsize for e in self.entries.values())

    def empty(self, *batch: int) -> Params:
        """Return uninitialised parameters with leading axes `batch`."""
        return Params(self, tuple(torch.empty(*batch, n, dtype=t) for n, t in zip(self.lengths, self.dtypes)))

    def zeros(self, *batch: int) -> Params:
        """Return zeros with leading axes `batch`."""
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
    """Ordered mapping name -> tensor, a view of `buffers`. The module's docstring describes the algebra."""

    __slots__ = ("layout", "buffers", "__weakref__")
    __array_ufunc__ = None  # numpy leaves `np.float64(2) * params` to `Params.__rmul__`

    def __init__(self, layout: Layout, buffers: tuple[Tensor, ...]):
        self.layout, self.buffers = layout, buffers

    @staticmethod
    def of(tensors: Mapping[str, Tensor]) -> Params:
        """Copy `tensors` into new buffers."""
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
        """Shape of the leading axes: () for one client, (C,) for C clients."""
        return self.buffers[0].shape[:-1] if self.buffers else torch.Size()

    @property
    def device(self) -> torch.device:
        """Device of the buffers; the CPU if there are none."""
        return self.buffers[0].device if self.buffers else torch.device("cpu")

    @property
    def numel(self) -> int:
        """Number of elements of one client, without padding."""
        return self.layout.numel

    @property
    def nbytes(self) -> int:
        """Size of the tensors of one client in bytes, without padding."""
        return self.layout.nbytes

    def row(self, index: int | slice | Tensor) -> Params:
        """Return client `index`, or clients by a slice or an index tensor. A view, except for an index tensor."""
        return Params(self.layout, tuple(b[index] for b in self.buffers))

    def to(self, device: torch.device | str) -> Params:
        """Copy to a device. Buffers that are already there are not copied."""
        return Params(self.layout, tuple(b.to(device) for b in self.buffers))

    def clone(self) -> Params:
        """Return a copy with its own memory."""
        return Params(self.layout, tuple(b.clone() for b in self.buffers))

    def select(self, patterns: Iterable[str] | None) -> Params:
        """Copy the tensors whose names match one of the glob `patterns`. `None` selects all of them, without a copy."""
        if patterns is None:
            return self
        names = match(self, patterns)
        if len(names) == len(self):
            return self
        entries = self.layout.entries
        layout = Layout.of((n, entries[n].shape, self.layout.dtypes[entries[n].buffer]) for n in names)
        return layout.zeros(*self.batch).copy_(self)

    def replace(self, other: Mapping[str, Tensor]) -> Params:
        """Return a copy in which the tensors of `other` replace those of the same name."""
        return self.clone().copy_(other, names=other)

    def added(self, *changes: Params) -> Params:
        """Return a copy to which `changes` are added. A change may hold only some of the tensors.

        >>> Params.of({"w": torch.ones(1), "b": torch.ones(1)}).added(Params.of({"b": torch.ones(1)}))["b"].item()
        2.0
        """
        out = self
        for change in changes:
            out = out.replace(out.select(list(change)) + change)
        return out

    def compact(self) -> Tensor:
        """Return all elements without padding, (*batch, numel). Needs a single dtype; a view if there is no padding."""
        if len(self.buffers) != 1:
            raise ValueError(f"compact() needs parameters of one dtype, got {self.layout.dtypes}")
        if not self.layout.gaps[0]:
            return self.buffers[0]
        entries = self.layout.entries.values()
        return torch.cat([self.buffers[0].narrow(-1, e.offset, e.numel) for e in entries], dim=-1)

    @staticmethod
    def expand(layout: Layout, flat: Tensor) -> Params:
        """Invert `compact`: (*batch, numel) -> parameters."""
        if not layout.gaps[0]:
            return Params(layout, (flat,))
        params, at = layout.zeros(*flat.shape[:-1]), 0
        for e in layout.entries.values():
            params.buffers[0].narrow(-1, e.offset, e.numel).copy_(flat.narrow(-1, at, e.numel))
            at += e.numel
        return params

    # -- in place ------------------------------------------------------------------------------------------------
    def copy_(self, other: Mapping[str, Tensor], names: Iterable[str] | None = None) -> Params:
        """Copy the values of `names` from `other` (default: all of `self`)."""
        if names is None and isinstance(other, Params) and other.layout is self.layout:
            for mine, theirs in zip(self.buffers, other.buffers):
                mine.copy_(theirs)
        else:
            for name in self if names is None else names:
                self[name].copy_(other[name])
        return self

    def add_(self, other: Params, alpha: float = 1.0) -> Params:
        """Add in place: self <- self + alpha * other."""
        for mine, theirs in zip(self.buffers, other.buffers):
            mine.add_(theirs, alpha=alpha)
        return self

    def sub_(self, other: Params) -> Params:
        """Subtract in place: self <- self - other."""
        for mine, theirs in zip(self.buffers, other.buffers):
            mine.sub_(theirs)
        return self

    def mul_(self, factor: float | Tensor) -> Params:
        """Scale in place: self <- factor * self; a factor of shape (C,) holds one number per client."""
        for mine in self.buffers:
            mine.mul_(_per_client(factor, mine))
        return self

    def zero_(self) -> Params:
        """Set all elements to 0."""
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


NOTHING = Params(Layout.of(()), ())  # parameters without any tensor


def elementwise(fn: Callable[..., Tensor], first: Params, *rest: Params) -> Params:
    """Apply `fn` to the buffers of parameters of one layout. `fn` must work element by element.

    >>> p = Params.of({"w": torch.tensor([1.0, 4.0])})
    >>> elementwise(torch.maximum, p, 2 * p)["w"].tolist()
    [2.0, 8.0]
    """
    for other in rest:
        if other.layout is not first.layout:
            raise ValueError(f"parameters differ: {difference(first, other)}")
    out = tuple(fn(*buffers) for buffers in zip(first.buffers, *(p.buffers for p in rest)))
    for buffer, gaps in zip(out, first.layout.gaps):
        for a, b in gaps:  # fn(0) may differ from 0; padding must not enter norms and sums
            buffer[..., a:b] = 0
    return Params(first.layout, out)


def _binary(fn: Callable[..., Tensor], p: Params, q: Params | float | Tensor) -> Params:
    if isinstance(q, Params):
        if q.layout is p.layout and (fn is torch.add or fn is torch.sub):  # padding stays 0
            return Params(p.layout, tuple(map(fn, p.buffers, q.buffers)))
        return elementwise(fn, p, q)
    if fn is torch.mul and isinstance(q, float) and 0 < q < math.inf:  # padding stays 0
        return Params(p.layout, tuple(fn(b, q) for b in p.buffers))
    return elementwise(lambda b: fn(b, _per_client(q, b)), p)


def _per_client(factor: float | Tensor | np.ndarray, buffer: Tensor) -> float | Tensor:
    """Reshape a factor (C,) to (C, 1), so that each client's parameters are scaled by their own number."""
    if isinstance(factor, np.ndarray):
        factor = torch.as_tensor(factor)
    if isinstance(factor, Tensor) and factor.ndim:
        return factor.to(buffer.dtype).reshape(*factor.shape, *(1,) * max(buffer.ndim - factor.ndim, 1))
    return factor


def match(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Return the `names` that match one of the glob `patterns`, in their order.

    >>> match(["conv.weight", "conv.bias", "head.weight"], ["*.weight"])
    ['conv.weight', 'head.weight']

    A pattern that matches no name is a `ValueError`.
    """
    names, patterns = list(names), list(patterns)
    for pattern in patterns:
        if not any(fnmatchcase(n, pattern) for n in names):
            raise ValueError(f"pattern {pattern!r} matches no parameter; the parameters are {names}")
    return [n for n in names if any(fnmatchcase(n, p) for p in patterns)]


def difference(p: Params, q: Params) -> str:
    """Describe how two layouts differ, for an error message."""
    a, b = ({n: e.shape for n, e in x.layout.entries.items()} for x in (p, q))
    rows = [f"{n}: {a.get(n)} and {b.get(n)}" for n in {**a, **b} if a.get(n) != b.get(n)]
    return "; ".join(rows) or f"order or dtype, {p.layout.spec} and {q.layout.spec}"


def zeros_like(p: Params) -> Params:
    """Return zeros with the layout and the batch axes of `p`."""
    return p.layout.zeros(*p.batch)


def sign(p: Params) -> Params:
    """Elementwise sign: -1, 0 or 1."""
    return elementwise(torch.sign, p)


def sqrt(p: Params) -> Params:
    """Elementwise square root."""
    return elementwise(torch.sqrt, p)


def dot(p: Params, q: Params, dtype: torch.dtype | None = None) -> Tensor:
    """Inner product over all tensors, of shape () or (C,). `dtype`: that of products and sums; default: the tensors'.

    >>> p = Params.of({"w": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])})
    >>> float(dot(p, p))
    14.0
    """
    pairs = ((a, b) if dtype is None else (a.to(dtype), b.to(dtype)) for a, b in zip(p.buffers, q.buffers))
    return sum(((a * b).sum(-1) for a, b in pairs), torch.zeros((), dtype=dtype))


def norm(p: Params) -> Tensor:
    """Euclidean norm over all tensors, of shape () or (C,)."""
    return torch.sqrt(dot(p, p))


def clipped(p: Params, bound: float) -> Params:
    """`p` scaled down to a norm of at most `bound`, each client by itself: p * min(1, bound / |p|)."""
    return p * (bound / norm(p).clamp(min=bound))


def join(*parts: Params) -> Params:
    """Merge several `Params` into one. If a name occurs twice, the last part wins. Batch axes broadcast.

    >>> list(join(Params.of({"w": torch.ones(1)}), Params.of({"b": torch.ones(1)})))
    ['w', 'b']
    """
    owner = {name: part for part in parts for name in part}
    batch = max((part.batch for part in parts), key=len)
    entries = [(name, part.layout.entries[name], part.layout.dtypes) for name, part in owner.items()]
    joined = Layout.of((name, entry.shape, dtypes[entry.buffer]) for name, entry, dtypes in entries).zeros(*batch)
    for name, part in owner.items():
        joined[name].copy_(part[name])
    return joined
