"""Subspaces in which weights do not move: what the hook `LocalTraining.protected` returns, checked.

U (d, k)    orthonormal columns; d: number of a weight's inputs, k <= d
g <- g - (g U) U^T
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from fl.errors import did_you_mean
from fl.method.training_values import StepContext

if TYPE_CHECKING:
    from fl.method.local_training import LocalTraining

TOLERANCE = 0.1  # of numbers in U^T U. Float32 leaves about 1e-6, a codec of broadcasts with 8 bits about 0.01

# Bases by the identity of a phase's context, with the method that was asked. Steps of the phase do not ask again.
_of_phase: MutableMapping[StepContext, tuple[LocalTraining, Mapping[str, Tensor]]] = WeakIdKeyDictionary()


def protected_by(algorithm: LocalTraining, at: StepContext) -> Mapping[str, Tensor]:
    """Return the bases of the protected subspaces, for those weights that the phase of `at` trains.

    The hook is called once for each context, because the subspaces are the same for all steps of a phase.

    Raises:
        ValueError: a basis does not fit its weight.
    """
    asked, bases = _of_phase.get(at, (None, {}))
    if asked is not algorithm:
        bases = _checked(algorithm.protected(at), at, f"client {type(algorithm).__name__}: protected")
        _of_phase[at] = algorithm, bases
    return bases


def _checked(bases: Any, at: StepContext, hook: str) -> Mapping[str, Tensor]:
    """Return those of the bases whose weights the phase trains."""
    if not isinstance(bases, Mapping):
        raise ValueError(f"{hook} returned {type(bases).__name__}, expected a dict of matrices by the name of a weight")
    trained, frozen = at.initial.trained, at.initial.frozen
    for name in bases:
        if name not in at.start and name not in trained and name not in frozen:
            known = [*trained]
            raise ValueError(f"{hook} names {name!r}; the model's tensors are {known}.{did_you_mean(name, known)}")
    layout, found = at.start.layout, {}
    for name, basis in bases.items():
        if entry := layout.entries.get(name):
            found[name] = _orthonormal(basis, entry.shape, layout.dtypes[entry.buffer], f"{hook}[{name!r}]")
    return found


def _orthonormal(basis: Any, shape: tuple[int, ...], dtype: torch.dtype, what: str) -> Tensor:
    """Return the basis of a weight of one client, of the given shape and type, checked."""
    if len(shape) < 2:
        raise ValueError(f"{what}: the tensor has the shape {shape}; only weights with inputs can be protected")
    d = math.prod(shape[1:])
    fits = isinstance(basis, Tensor) and basis.ndim == 2 and basis.dtype == dtype
    if not fits or basis.shape[0] != d or basis.shape[1] > d:
        given = f"{basis.dtype} {tuple(basis.shape)}" if isinstance(basis, Tensor) else type(basis).__name__
        raise ValueError(
            f"{what} is {given}, expected orthonormal columns, the same for all clients: {dtype} ({d}, k) with "
            f"k at most {d}"
        )
    basis = basis.detach()
    away = (basis.T @ basis - torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)).abs()
    if away.numel() and not (largest := float(away.max())) < TOLERANCE:
        raise ValueError(
            f"{what}: its columns are not orthonormal, the largest |U^T U - I| is {largest:.2g}, above {TOLERANCE}; "
            "torch.linalg.qr(matrix).Q has orthonormal columns, and a codec of broadcasts (codec.down) may change them"
        )
    return basis
