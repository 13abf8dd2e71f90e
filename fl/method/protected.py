"""Subspaces in which weights do not move: what the hook `LocalTraining.protected` returns, checked.

U (d, k)    orthonormal columns; d: number of a weight's inputs, k <= d
g <- g - (g U) U^T
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fl.errors import did_you_mean
from fl.method.training_values import StepContext

if TYPE_CHECKING:
    from fl.method.local_training import LocalTraining

TOLERANCE = 1e-3  # of U^T U, of which float32 leaves about 1e-6

_orthonormal: WeakKeyDictionary[Tensor, int] = WeakKeyDictionary()  # bases that were checked, with their versions


def protected_by(algorithm: LocalTraining, at: StepContext) -> Mapping[str, Tensor]:
    """Return the bases of the protected subspaces, for those weights that the phase of `at` trains.

    Raises:
        ValueError: a basis does not fit its weight.
    """
    bases: Any = algorithm.protected(at)
    who = f"client {type(algorithm).__name__}: protected"
    if not isinstance(bases, Mapping):
        raise ValueError(f"{who} returned a {type(bases).__name__}; return a dict of matrices by the name of a weight")
    found = {}
    for name, basis in bases.items():
        if name in at.start:
            found[name] = _checked(basis, at.start[name], len(at.start.batch), f"{who}[{name!r}]")
        elif name not in at.initial.trained and name not in at.initial.frozen:
            known = [*at.initial.trained]
            raise ValueError(f"{who} names {name!r}; the model's tensors are {known}.{did_you_mean(name, known)}")
    return found


def _checked(basis: Any, weight: Tensor, axes: int, what: str) -> Tensor:
    """Return a basis for a weight, which has `axes` axes of clients before its own."""
    shape = weight.shape[axes:]
    if len(shape) < 2:
        raise ValueError(f"{what}: the tensor has the shape {tuple(shape)}; only weights with inputs can be protected")
    inputs = shape[1:].numel()
    if not isinstance(basis, Tensor):
        raise ValueError(f"{what} is a {type(basis).__name__}, expected a tensor ({inputs}, k) of {weight.dtype}")
    if basis.ndim != 2 or basis.dtype != weight.dtype or basis.shape[0] != inputs or basis.shape[1] > inputs:
        raise ValueError(
            f"{what} has the shape {tuple(basis.shape)} and the type {basis.dtype}, expected ({inputs}, k) and "
            f"{weight.dtype}, k at most {inputs}: an orthonormal basis, the same for all clients"
        )
    basis = basis.detach()
    if _orthonormal.get(basis) != basis._version:
        away = (basis.T @ basis - torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)).abs()
        if basis.shape[1] and not float(away.max()) < TOLERANCE:
            raise ValueError(
                f"{what}: its columns are not orthonormal, the largest |U^T U - I| is {float(away.max()):.2g}; "
                "torch.linalg.qr(matrix).Q has orthonormal columns"
            )
        _orthonormal[basis] = basis._version
    return basis
