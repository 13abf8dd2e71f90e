"""Statistics of the inputs of a layer that add over clients, to find the subspace that all inputs span.

    `Sketch`: R G,  G Gaussian      `Gram`: R R^T             R = (I - U U^T) X: inputs outside the basis
    `NormRatio`: sum n_i ||R_i|| / ||X_i|| / sum n_i          `EnergyRatio`: sum ||R_i||^2 / sum ||X_i||^2

X (d, n) are the inputs, U (d, k) is the basis, or None if there is none yet. A client adds its blocks of inputs to a
total and sends it; the server extends the basis from the sum over clients. `fl.tensors.subspace` has the functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fl.tensors import subspace


class InputStatistic(Protocol):
    """What clients send about the inputs of one layer; it adds over blocks of samples and over clients."""

    def zeros(self, d: int) -> Tensor:
        """Return the total of no samples, for inputs of size d."""
        ...

    def add(self, total: Tensor, x: Tensor, basis: Tensor | None, draw: torch.Generator) -> None:
        """Add a block of inputs x (d, n) to the total."""
        ...

    def message(self, total: Tensor) -> Tensor:
        """Return what is sent of the total."""
        ...

    def extend(self, basis: Tensor | None, received: Tensor, tau: float, least: int) -> Tensor | None:
        """Return the basis with the directions that a task adds; at least `least` of them."""
        ...


@dataclass(frozen=True)
class Sketch:
    """A random sketch R G (d, m), m = round(factor d). Its singular values are approximate."""

    factor: float

    def zeros(self, d: int) -> Tensor:
        return torch.zeros(d, round(self.factor * d))

    def add(self, total: Tensor, x: Tensor, basis: Tensor | None, draw: torch.Generator) -> None:
        total += subspace.sketch(x, basis, torch.randn(x.shape[1], total.shape[1], generator=draw))

    def message(self, total: Tensor) -> Tensor:
        return total

    def extend(self, basis: Tensor | None, received: Tensor, tau: float, least: int) -> Tensor | None:
        return subspace.extend_basis_from_sketch(basis, received, tau, least)


@dataclass(frozen=True)
class Gram:
    """The Gram matrix R R^T (d, d), sent as its upper triangle. Exact over clients, exact singular values."""

    def zeros(self, d: int) -> Tensor:
        return torch.zeros(d, d)

    def add(self, total: Tensor, x: Tensor, basis: Tensor | None, draw: torch.Generator) -> None:
        total += subspace.gram(x, basis)

    def message(self, total: Tensor) -> Tensor:
        return subspace.packed(total)

    def extend(self, basis: Tensor | None, received: Tensor, tau: float, least: int) -> Tensor | None:
        return subspace.extend_basis_from_gram(basis, subspace.unpacked(received), tau, least)


def statistic_of(factor: float) -> InputStatistic:
    """Return the statistic that a broadcast's `factor` stands for: 0 is the Gram matrix."""
    return Sketch(factor) if factor else Gram()


class ResidualRatio(Protocol):
    """Share of the inputs outside the basis."""

    @property
    def least(self) -> int:
        """Minimum number of vectors that are added to the basis."""
        ...

    def terms(self, squares: Tensor, n: int) -> Tensor:
        """Return two numbers (2,) of a client with n samples, from (||R||^2, ||X||^2).

        The quotient of their sums over clients is the ratio.
        """
        ...


@dataclass(frozen=True)
class NormRatio:
    """The mean over samples of each client's ||R|| / ||X||, as in the authors' program, which always adds a vector."""

    least: int = 1

    def terms(self, squares: Tensor, n: int) -> Tensor:
        rho = torch.sqrt(squares[0] / squares[1]) if squares[1] > 0 else squares.new_zeros(())
        return torch.stack([n * rho, torch.full_like(rho, n)])


@dataclass(frozen=True)
class EnergyRatio:
    """||R||^2 / ||X||^2 of all inputs: the criterion "keep eps of the energy". It may add nothing."""

    least: int = 0

    def terms(self, squares: Tensor, n: int) -> Tensor:
        return squares


RATIOS: dict[str, ResidualRatio] = {"norm": NormRatio(), "energy": EnergyRatio()}
