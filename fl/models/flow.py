"""A normalising flow of affine couplings (RealNVP) as plain tensors: density estimation on feature vectors.

    coupling    (a, c) = the first D // 2 features and the others;    (s, t) = perceptron(a)
                c' = c exp(tanh s) + t,    log |det| = sum tanh s
    log p(x) = log N(F(x); 0, I) + sum of log |det|        F: the couplings, each after a fixed permutation of features

Dinh, Sohl-Dickstein, Bengio 2017, arXiv:1605.08803. The permutations swap the halves and mix the features by turns, so
two couplings change every feature. tanh bounds the scales: the determinant of a coupling is within e^(+-D/2).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fl.checks import at_least
from fl.models import perceptron
from fl.tensors import random


def first_weights(
    features: int, couplings: int, hidden: Sequence[int], generator: torch.Generator
) -> dict[str, Tensor]:
    """Draw the perceptrons of all couplings. Their last layers are 0, so F starts as a permutation of features.

    >>> weights = first_weights(4, 2, [8], torch.Generator().manual_seed(0))
    >>> x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    >>> z, log_det = forward(weights, x)
    >>> z.sort().values.tolist(), log_det.tolist()
    ([[1.0, 2.0, 3.0, 4.0]], [0.0])

    Args:
        features: number of features D, at least 2.
        couplings: number of couplings, at least 1.
        hidden: hidden units of each perceptron.
        generator: source of the draws.
    """
    at_least(2, features=features)
    at_least(1, couplings=couplings)
    kept = features // 2
    sizes = (kept, *hidden, 2 * (features - kept))
    weights = dict[str, Tensor]()
    for i in range(couplings):
        drawn = perceptron.first_weights(sizes, generator, f"{i}.")
        zeros = {name: torch.zeros_like(t) for name, t in drawn.items() if name.startswith(f"{i}.{len(hidden)}.")}
        weights |= drawn | zeros
    return weights


def forward(weights: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return F(x), (B, D), and the logarithm of the determinant of its Jacobian, (B,), for x (B, D)."""
    log_det = x.new_zeros(len(x))
    for i in range(_couplings(weights)):
        a, c = _halves(x[:, _order(i, x.shape[1])])
        s, t = _scale_and_shift(weights, a, i)
        x, log_det = torch.cat([a, c * s.exp() + t], 1), log_det + s.sum(1)
    return x, log_det


def inverse(weights: Mapping[str, Tensor], z: Tensor) -> Tensor:
    """Return x with F(x) = z, (B, D)."""
    for i in reversed(range(_couplings(weights))):
        a, c = _halves(z)
        s, t = _scale_and_shift(weights, a, i)
        z = torch.cat([a, (c - t) * (-s).exp()], 1)[:, _order(i, z.shape[1]).argsort()]
    return z


def log_density(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Return log p(x) in nats, (B,), for x (B, D).

    >>> weights = first_weights(2, 1, [4], torch.Generator())  # the standard normal density, 1 / (2 pi) at 0
    >>> round(float(log_density(weights, torch.zeros(1, 2)).exp()), 4)
    0.1592
    """
    z, log_det = forward(weights, x)
    return log_det - 0.5 * (z.square().sum(1) + z.shape[1] * math.log(2 * math.pi))


def _couplings(weights: Mapping[str, Tensor]) -> int:
    return len({name.partition(".")[0] for name in weights})


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    kept = x.shape[1] // 2
    return x[:, :kept], x[:, kept:]


def _scale_and_shift(weights: Mapping[str, Tensor], a: Tensor, coupling: int) -> tuple[Tensor, Tensor]:
    """Return tanh s and t of a coupling."""
    s, t = perceptron.outputs(weights, a, f"{coupling}.").chunk(2, 1)
    return s.tanh(), t


@functools.cache
def _order(coupling: int, features: int) -> Tensor:
    """Return the permutation of features before a coupling, int64 (D,)."""
    if coupling % 2:
        return torch.from_numpy(np.roll(np.arange(features), features // 2))
    return torch.from_numpy(random.permutation(features, "flow", coupling))
