"""Linear combinations of parameters, computed later and together.

    combination = sum_k factor_k * params_k

A `Combination` is a `Params` that holds its terms in place of its numbers. Sums, differences and multiples of it are
combinations again. Everything else computes it by torch. A term may be `Unknown`, such as the parameters after a
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

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fl.tensors.params import Layout, Params

Factor = float | Tensor  # a number, or one for each client, (C,)


class NotKnown(Exception):
    """Numbers were asked for that are not known yet."""


class Unknown(Params):
    """Parameters whose numbers are not known yet.

    Args:
        layout: their layout.
        batch: their leading axes.
    """

    __slots__ = ("axes",)

    def __init__(self, layout: Layout, batch: Sequence[int]):
        self.layout, self.axes = layout, torch.Size(batch)

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
    """A term of a combination: `factor` times `params`, whose buffers had the `version` when the term was made."""

    factor: Factor
    params: Params
    version: int

    @staticmethod
    def of(params: Params) -> Term:
        """Return parameters as a term."""
        return Term(1.0, params, _version(params))

    def times(self, factor: Factor) -> Term:
        """Return a multiple."""
        return Term(self.factor * factor, self.params, self.version)

    def check(self) -> None:
        """Raise `NotKnown` if the parameters have been written since."""
        if _version(self.params) != self.version:
            raise NotKnown


def _version(params: Params) -> int:
    return 0 if isinstance(params, Unknown) else sum(buffer._version for buffer in params.buffers)


class Combination(Params):
    """A linear combination of parameters of one layout.

    Args:
        terms: its terms, at least one.

    Attributes:
        computed: whether its only term holds its numbers.
    """

    __slots__ = ("terms", "computed")

    def __init__(self, terms: Sequence[Term]):
        self.layout, self.terms, self.computed = terms[0].params.layout, tuple(terms), False

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
            for term in self.terms:
                term.check()
            total = self.terms[0].params * self.terms[0].factor
            for term in self.terms[1:]:
                total = total + term.params * term.factor
            self.terms, self.computed = (Term.of(total),), True
        return self.terms[0].params.buffers

    @property
    def batch(self) -> torch.Size:
        """Shape of the leading axes."""
        return max((term.params.batch for term in self.terms), key=len)

    @property
    def current(self) -> tuple[Term, ...]:
        """The terms, with all writes to numbers that were computed."""
        return (Term.of(self.terms[0].params),) if self.computed else self.terms

    def collected(self) -> list[tuple[Factor, Params]]:
        """Return (factor, params), each params once, without those whose factors are all 0.

        Raises:
            NotKnown: numbers have changed since their term was made.
        """
        found: dict[int, tuple[Factor, Params]] = {}
        for term in self.current:
            term.check()
            before = found.get(id(term.params))
            found[id(term.params)] = (term.factor if before is None else before[0] + term.factor, term.params)
        return [(factor, params) for factor, params in found.values() if bool(torch.as_tensor(factor != 0).any())]

    def _plus(self, other: object, sign: float, mine: float = 1.0) -> Combination | None:
        """Return the sum with other parameters of this layout, each times a sign; None for anything else."""
        if not isinstance(other, Params) or other.layout is not self.layout:
            return None
        terms = other.current if isinstance(other, Combination) else (Term.of(other),)
        return Combination([*(term.times(mine) for term in self.current), *(term.times(sign) for term in terms)])

    def _times(self, factor: float | Tensor | np.ndarray) -> Combination:
        """Return a multiple by a number, or by one for each client."""
        if isinstance(factor, np.ndarray):
            factor = torch.as_tensor(factor)
        if isinstance(factor, Tensor) and factor.ndim > 1:
            raise NotKnown
        return Combination([term.times(factor) for term in self.current])

    # -- algebra -------------------------------------------------------------------------------------------------
    def __add__(self, other: Params | float | Tensor) -> Params:
        found = self._plus(other, 1.0)
        return super().__add__(other) if found is None else found

    __radd__ = __add__

    def __sub__(self, other: Params | float | Tensor) -> Params:
        found = self._plus(other, -1.0)
        return super().__sub__(other) if found is None else found

    def __rsub__(self, other: Params | float | Tensor) -> Params:
        found = self._plus(other, 1.0, -1.0)
        return -self + other if found is None else found

    def __mul__(self, other: Params | float | Tensor) -> Params:
        return super().__mul__(other) if isinstance(other, Params) else self._times(other)

    __rmul__ = __mul__

    def __truediv__(self, other: Params | float | Tensor) -> Params:
        return super().__truediv__(other) if isinstance(other, Params) else self._times(1 / other)

    def __neg__(self) -> Params:
        return self._times(-1.0)

    # -- in place ------------------------------------------------------------------------------------------------
    def _becomes(self, other: Combination | None) -> Combination:
        """Take the terms of another combination.

        Raises:
            NotKnown: there is none: such a change of the numbers is not linear, or of another layout.
        """
        if other is None:
            raise NotKnown
        self.terms, self.computed = other.terms, False
        return self

    def add_(self, other: Params, alpha: float = 1.0) -> Params:
        """Add in place: self <- self + alpha * other."""
        return self._becomes(self._plus(other, alpha))

    def sub_(self, other: Params) -> Params:
        """Subtract in place: self <- self - other."""
        return self._becomes(self._plus(other, -1.0))

    def mul_(self, factor: float | Tensor) -> Params:
        """Scale in place: self <- factor * self; a factor of shape (C,) holds one number per client."""
        return self._becomes(self._times(factor))
