"""Distributed discrete Gaussian noise: each client adds a share of the noise to its integers, before the masks.

    words_i = round(u_i / step) + N_Z(0, s^2),   s = z bound / (step sqrt(t))        N_Z: the discrete normal law
    value   = step * sum_i words_i / divisor

The server opens the noisy sum only (Kairouz, Liu, Steinke 2021, arXiv:2102.06387). t is the smallest number of clients
whose words may be in an opened sum; fewer abort the exchange, and more make the noise larger. The sum of n >= t shares
satisfies eps^2 / 2 concentrated differential privacy for one client whose update is replaced by zero (Theorem 1):

    eps = min(sqrt(1 / z^2 + tau d / 2), 1 / z + tau sqrt(d)),   tau = 10 sum_(k < n) exp(-2 pi^2 s^2 k / (k + 1))

for d elements. tau must be so small that eps exceeds 1 / z by a thousandth at most. The account uses this thousandth.
Differs from the paper: the modulus holds every sum, so there is no rotation and nothing wraps around; updates are
shrunk before rounding (secure/summands.py) in place of conditional rounding; the server knows who takes part, so that
nothing is gained by sampling: epsilon counts the participations of the client that has taken part most often.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from fl.checks import within
from fl.privacy.accounting import dp_accounting
from fl.privacy.mechanism import Groups, Mechanism, Release, Sampling
from fl.privacy.secure.vectors import tree_of, vectors_of
from fl.registry import register
from fl.tensors import random
from fl.tensors.trees import Tree, tree_map

if TYPE_CHECKING:
    from dp_accounting import DpEvent

FINE = 1000.0  # steps of a standard deviation
SLACK = 1e-3  # of epsilon, for the sum of discrete normal numbers that is not quite a discrete normal number


@register("mechanism", "distributed_discrete_gaussian")
@dataclass(frozen=True, kw_only=True)
class DistributedDiscreteGaussian(Mechanism):
    """Discrete normal noise that clients add under secure aggregation.

    Args:
        survivors: share of the expected cohort whose noise is enough, in (0, 1]. With fewer clients in the sum the
            exchange is aborted, and the round changes nothing.
    """

    survivors: float = 2 / 3
    distributed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        within("(0, 1]", survivors=self.survivors)

    def check(self, sampling: Sampling) -> None:
        """Any sampler: epsilon counts participations."""

    def least(self, expected: float) -> int:
        """Return t, the smallest number of clients in an opened sum, for an expected cohort."""
        return max(math.ceil(self.survivors * expected - 1e-9), 1)

    def noise(self, state: Tree, like: Groups, release: Release) -> tuple[Groups, Tree]:
        """Return the noise of a whole sum, as a trusted server would add it. The engine leaves noise to the clients."""
        streams, out = release.streams, {}
        step = release.scale / FINE
        for group, tree in like.items():
            generator = random.numpy_generator(streams.seed, streams.secret, "discrete noise", release.index, group)
            numbers = torch.from_numpy(discrete_gaussian(FINE, sum(map(Tensor.numel, vectors_of(tree))), generator))
            out[group] = tree_of(tree, numbers.split([vector.numel() for vector in vectors_of(tree)]))
            out[group] = tree_map(lambda leaf: leaf * step, out[group])
        return out, state

    def std(self, release: Release) -> float:
        return release.scale

    def event(self, noise_multiplier: float, sampling: Sampling, releases: int) -> DpEvent:
        dp = dp_accounting()
        return dp.SelfComposedDpEvent(dp.GaussianDpEvent(noise_multiplier * (1 - SLACK)), releases)


def concentrated_epsilon(sensitivity: float, std: float, least: int, most: int, count: int) -> float:
    """Return eps of the sum's eps^2 / 2 concentrated differential privacy (Theorem 1 of the paper, without Delta_1).

    Args:
        sensitivity: largest Euclidean norm of a client's integers.
        std: standard deviation of a client's noise.
        least: fewest clients in the sum, t.
        most: most clients in the sum, n.
        count: number of elements, d.
    """
    k = np.arange(1, max(most, 2))
    tau = 10 * float(np.exp(-2 * math.pi**2 * std**2 * k / (k + 1)).sum())
    ratio = sensitivity / (math.sqrt(least) * std)
    return min(math.sqrt(ratio**2 + tau * count / 2), ratio + tau * math.sqrt(count))


def discrete_gaussian(std: float, count: int, generator: np.random.Generator) -> np.ndarray:
    """Draw integers k with probability proportional to exp(-k^2 / (2 std^2)), int64 (count,).

    Canonne, Kamath, Steinke 2020, arXiv:2004.00010, Algorithm 3, with doubles in place of rational numbers.

    >>> draws = discrete_gaussian(2.0, 100_000, np.random.default_rng(0))
    >>> bool(abs(draws.std() - 2.0) < 0.02)
    True
    """
    scale = math.floor(std) + 1
    found = np.empty(0, np.int64)
    while len(found) < count:
        size = int(1.5 * (count - len(found))) + 16
        # the difference of two geometric numbers is a discrete Laplace number of this scale
        draws = generator.geometric(-math.expm1(-1 / scale), (2, size)).astype(np.int64)
        laplace = draws[0] - draws[1]
        accept = np.exp(-((np.abs(laplace) - std**2 / scale) ** 2) / (2 * std**2))
        found = np.concatenate([found, laplace[generator.random(size) < accept]])
    return found[:count]
