"""Linear combinations of parameters, computed later and together.

    combination = sum_k factor_k * params_k

A `Combination` is a `Params` that holds its terms in place of its numbers. Sums, differences, multiples and copies of
it are combinations again. Everything else computes it by torch. A term may be `Unknown`, such as the parameters after a
training that has yet to run. So the engine sees that a hook only adds and scales vectors, and takes all its sums in the
pass over memory that trains a client.

>>> p = Params.of({"w": torch.tensor([1.0, 2.0])})
>>> trained = Combination.single(Unknown(p.layout, ()))
>>> change = 0.5 * (trained - p)
>>> [term.factor for term in change.terms]
[0.5, -0.5]
>>> (Combination.single(p) * 3.0)["w"].tolist()
[3.0, 6.0]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fl.tensors.params import Layout, Params

Factor = float | np.ndarray  # a number, or one for each client, float64 (C,)


class NotKnown(BaseException):
    """The result of an operation needs numbers that are not known, or that have changed.

    A hook with `except Exception` does not catch it, for it would go on with a wrong value.
    """


class Unknown(Params):
    """Parameters whose numbers are not known.

    Args:
        layout: their layout.
        batch: their leading axes.

    Attributes:
        version: how often they have been written.
    """

    __slots__ = ("axes", "version")

    def __init__(self, layout: Layout, batch: Sequence[int]):
        self.layout, self.axes, self.version = layout, torch.Size(batch), 0

    @property
    def buffers(self) -> tuple[Tensor, ...]:  # type: ignore[override]  # a property in place of an attribute
        """None.

        Raises:
            NotKnown: always.
        """
        raise NotKnown

    @property
    def batch(self) -> torch.Size:
        """Shape of the leading axes."""
        return self.axes


class Term(NamedTuple):
    """A term of a combination: `factor` times `params`, which had the `version` when the term was made."""

    factor: Factor
    params: Params
    version: int

    @staticmethod
    def of(params: Params) -> Term:
        """Return parameters as a term."""
        return Term(1.0, params, _version(params))

    @property
    def batch(self) -> torch.Size:
        """Shape of the leading axes."""
        own = self.params.batch
        return own if isinstance(self.factor, float) else _broadcast(own, _per_client(self.factor, own))

    def times(self, factor: Factor) -> Term:
        """Return a multiple."""
        unchanged = isinstance(factor, float) and factor == 1
        return self if unchanged else Term(self.factor * factor, self.params, self.version)

    def numbers(self) -> Params:
        """Return the product, computed."""
        return self.params * (self.factor if isinstance(self.factor, float) else torch.from_numpy(self.factor))

    def check(self) -> None:
        """Raise `NotKnown` if the parameters have been written since."""
        if _version(self.params) != self.version:
            raise NotKnown("a sum of parameters is used after one of them changed")


def _version(params: Params) -> int:
    own: int | None = getattr(params, "version", None)  # `isinstance` takes long for a class that is a Mapping
    return sum([buffer._version for buffer in params.buffers]) if own is None else own


def _broadcast(*axes: tuple[int, ...]) -> torch.Size:
    """Return the axes that all of `axes` broadcast to. torch takes 9 microseconds for what is usually the same axes."""
    found = {own for own in axes if own}
    return torch.Size(found.pop() if len(found) == 1 else torch.broadcast_shapes(*axes))


def _per_client(factor: np.ndarray, batch: torch.Size) -> tuple[int, ...]:
    """Return the shape in which (C,) numbers broadcast over leading axes (C, ...)."""
    return (*factor.shape, *(1,) * (len(batch) - 1))


def _factor(value: object) -> Factor | None:
    """Return a number, or one for each client, as a factor; None for anything else."""
    if isinstance(value, Tensor) and value.ndim <= 1 and not value.is_complex():
        value = value.detach().double().numpy()
    if isinstance(value, (np.ndarray, np.number)) and value.ndim <= 1 and value.dtype.kind in "biuf":
        return value.astype(np.float64, copy=False) if value.ndim else float(value)
    return float(value) if isinstance(value, (int, float)) else None


def _is_zero(factor: Factor) -> bool:
    """Return whether a factor is 0 for all clients."""
    return factor == 0 if isinstance(factor, float) else not np.count_nonzero(factor)


def opposite(a: Factor, b: Factor) -> bool:
    """Return whether a + b is 0 for all clients."""
    return _is_zero(a + b)


def _merged(terms: Iterable[Term]) -> tuple[Term, ...]:
    """Return the same sum with one term for each params and version."""
    found: dict[tuple[int, int], Term] = {}
    for term in terms:
        key = id(term.params), term.version
        found[key] = found[key]._replace(factor=found[key].factor + term.factor) if key in found else term
    return tuple(found.values())


class Combination(Params):
    """A linear combination of parameters of one layout.

    Args:
        terms: its terms, at least one.

    Attributes:
        computed: whether its only term holds its numbers. Changes in place are then made in this memory.
    """

    __slots__ = ("terms", "computed")

    def __init__(self, terms: Iterable[Term]):
        self.terms, self.computed = _merged(terms), False
        self.layout = self.terms[0].params.layout

    @staticmethod
    def single(params: Params) -> Combination:
        """Return parameters as a combination of one term. Writes to its numbers do not change the parameters."""
        return params if isinstance(params, Combination) else Combination([Term.of(params)])

    @property
    def buffers(self) -> tuple[Tensor, ...]:  # type: ignore[override]  # a property in place of an attribute
        """The numbers. They are computed once; later writes to them last.

        Raises:
            NotKnown: a term is not known yet, or its numbers have changed since.
        """
        if not self.computed:
            first, *others = self.checked()
            total = first.numbers()
            for term in others:
                total = total + term.numbers()
            self.terms, self.computed = (Term.of(total),), True
        return self.terms[0].params.buffers

    @property
    def batch(self) -> torch.Size:
        """Shape of the leading axes."""
        return _broadcast(*(term.batch for term in self.terms))

    @property
    def current(self) -> tuple[Term, ...]:
        """The terms, with all writes to numbers that were computed."""
        return (Term.of(self.terms[0].params),) if self.computed else self.terms

    def checked(self) -> tuple[Term, ...]:
        """Return the terms, each params once.

        Raises:
            NotKnown: numbers have changed since their term was made.
        """
        for term in self.current:
            term.check()
        return self.current

    def collected(self) -> list[tuple[Factor, Params]]:
        """Return (factor, params), each params once, without those whose factors are all 0.

        Raises:
            NotKnown: numbers have changed since their term was made.
        """
        return [(factor, params) for factor, params, _ in self.checked() if not _is_zero(factor)]

    def _like(self, other: object) -> Combination | None:
        """Return parameters of this layout as a combination; None for anything else."""
        return Combination.single(other) if isinstance(other, Params) and other.layout is self.layout else None

    def _plus(self, other: object, sign: object = 1.0, mine: float = 1.0) -> Combination | None:
        """Return mine * self + sign * other; None if that is no linear combination."""
        found, by = self._like(other), _factor(sign)
        if found is None or not isinstance(by, float):
            return None
        return Combination([*(term.times(mine) for term in self.current), *(term.times(by) for term in found.current)])

    def _times(self, factor: object) -> Combination | None:
        """Return a multiple by a number, or by one for each client; None for any other factor."""
        by = _factor(factor)
        return None if by is None else Combination([term.times(by) for term in self.current])

    # -- algebra -------------------------------------------------------------------------------------------------
    def clone(self) -> Params:
        """Return a combination of its own. Changes in place of one do not change the other."""
        return Combination(self.current)

    def __add__(self, other: Params | float | Tensor) -> Params:
        found = self._plus(other)
        return super().__add__(other) if found is None else found

    __radd__ = __add__

    def __sub__(self, other: Params | float | Tensor) -> Params:
        found = self._plus(other, -1.0)
        return super().__sub__(other) if found is None else found

    def __rsub__(self, other: Params | float | Tensor) -> Params:
        found = self._plus(other, 1.0, -1.0)
        return -self + other if found is None else found

    def __mul__(self, other: Params | float | Tensor) -> Params:
        found = self._times(other)
        return super().__mul__(other) if found is None else found

    __rmul__ = __mul__

    def __truediv__(self, other: Params | float | Tensor) -> Params:
        by = _factor(other)
        found = None if by is None or (isinstance(by, float) and by == 0) else self._times(1.0 / by)
        return super().__truediv__(other) if found is None else found

    def __neg__(self) -> Params:
        return Combination([term.times(-1.0) for term in self.current])

    # -- in place ------------------------------------------------------------------------------------------------
    def _becomes(self, other: Combination | None) -> bool:
        """Take the terms of another combination. Return False if the change has to be made in memory.

        That is so if there is no combination, if it has other leading axes, or if the numbers were computed: views of
        them have to see the change.
        """
        if other is None or self.computed or other.batch != self.batch:
            return False
        self.terms = other.current
        return True

    def copy_(self, other: Mapping[str, Tensor], names: Iterable[str] | None = None) -> Params:
        """Copy the values of `names` from `other` (default: all of `self`)."""
        if names is not None or not self._becomes(self._like(other)):
            super().copy_(other, names)
        return self

    def add_(self, other: Params, alpha: float = 1.0) -> Params:
        """Add in place: self <- self + alpha * other."""
        if not self._becomes(self._plus(other, alpha)):
            super().add_(other, alpha)
        return self

    def sub_(self, other: Params) -> Params:
        """Subtract in place: self <- self - other."""
        if not self._becomes(self._plus(other, -1.0)):
            super().sub_(other)
        return self

    def mul_(self, factor: float | Tensor) -> Params:
        """Scale in place: self <- factor * self; a factor of shape (C,) holds one number per client."""
        if not self._becomes(self._times(factor)):
            super().mul_(factor)
        return self
