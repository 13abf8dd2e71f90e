"""How an update is clipped: one or several parts of it, each to a bound of its own.

u_k <- u_k * min(1, bound_k / |u_k|)    for each part k of the update;    sensitivity = sqrt(sum_k bound_k^2)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl.privacy.mechanism import Norm
from fl.tensors.params import Params
from fl.tensors.trees import Tree

Part = tuple[tuple[str, str], ...]  # (group, tensor) of each tensor of the part; tensor is "" for a group without names


@dataclass(frozen=True)
class Counts:
    """What a clipping learns from a release.

    Args:
        inside: noisy number of clients, for each part, whose norm was within the bound, minus half of the clients that
            answered, (K,).
        expected: expected number of clients in a cohort.
    """

    inside: np.ndarray
    expected: float


class Clipping:
    """Base of clippings. Subclasses are frozen dataclasses of hyper-parameters.

    Attributes:
        adapts: whether the bound follows the clients' norms. Then the numbers of clients within the bound are released
            with noise, too.
    """

    adapts: ClassVar[bool] = False

    def parts(self, groups: Mapping[str, Tree]) -> tuple[Part, ...] | None:
        """Return the parts of an update that are clipped one by one; None: the whole update is one part.

        Raises:
            ValueError: the update does not have the tensors that the clipping names.
        """
        return None

    def init(self) -> Tree:
        """Return the state before the first release. Default: None."""
        return None

    def bounds_at(self, state: Tree, parts: int, norm: Norm) -> tuple[float, ...]:
        """Return the bounds of the parts, in their order, for the norm of a mechanism."""
        raise NotImplementedError

    def next(self, state: Tree, counts: Counts) -> Tree:
        """Return the state after a release. It is called only if the clipping adapts. Default: the same."""
        return state

    def count_std(self, expected: float) -> float:
        """Return the standard deviation of the noise on the numbers of clients within the bound."""
        return 0.0

    def multiplier_of_sum(self, noise_multiplier: float, expected: float) -> float:
        """Return the noise multiplier of the sums, if sums and numbers together have `noise_multiplier`."""
        return noise_multiplier


def sensitivity(bounds: tuple[float, ...], norm: Norm) -> float:
    """Return how much one client changes the sum, in the norm of the mechanism.

    >>> sensitivity((3.0, 4.0), "l2"), sensitivity((3.0, 4.0), "l1")
    (5.0, 7.0)
    """
    return bounds[0] if len(bounds) == 1 else sum(bounds) if norm == "l1" else math.hypot(*bounds)


def all_tensors(groups: Mapping[str, Tree]) -> list[tuple[str, str]]:
    """Return (group, name) of each tensor of an update; name is "" for a group that is one tensor.

    >>> import torch
    >>> all_tensors({"model": Params.of({"w": torch.ones(1)}), "bias": torch.ones(2)})
    [('model', 'w'), ('bias', '')]
    """
    return [(g, name) for g, tree in groups.items() for name in (tree if isinstance(tree, Params) else ("",))]
