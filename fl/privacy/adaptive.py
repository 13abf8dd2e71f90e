"""Adaptive clipping.    bound <- bound * exp(-lr * (b - quantile)),    b: noisy share of clients within the bound

Andrew, Thakkar, McMahan, Ramaswamy 2021, arXiv:1905.03871.  Each client adds 1/2 if its norm is within the bound, else
-1/2, so that one client changes the sum by 1/2.  By Theorem 1, counts with noise sigma_b and sums with noise multiplier
z_sum = (z^-2 - (2 sigma_b)^-2)^(-1/2) are together as private as sums alone with noise multiplier z.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from fl.checks import within
from fl.privacy.clipping import Clipping, Counts
from fl.privacy.mechanism import Norm
from fl.registry import register
from fl.tensors.trees import Tree


@register("clipping", "adaptive")
@dataclass(frozen=True, kw_only=True)
class Adaptive(Clipping):
    """Clip the whole update to a bound that follows a quantile of the clients' norms.

    Args:
        bound: the bound of the first round, positive.
        quantile: share of clients that should be within the bound, in (0, 1).
        lr: rate at which the bound moves, positive.
        sigma_b: standard deviation of the noise on the number of clients within the bound, positive. Default: 1/20
            of the expected cohort, as in the paper.
    """

    bound: float = 0.1
    quantile: float = 0.5
    lr: float = 0.2
    sigma_b: float | None = None
    adapts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        within("(0, inf)", bound=self.bound, lr=self.lr, sigma_b=self.sigma_b)
        within("(0, 1)", quantile=self.quantile)

    def init(self) -> float:
        return self.bound

    def bounds_at(self, state: Tree, parts: int, norm: Norm) -> tuple[float, ...]:
        return (state,)

    def next(self, state: Tree, counts: Counts) -> float:
        share = 0.5 + float(counts.inside[0]) / counts.expected
        return state * math.exp(-self.lr * (share - self.quantile))

    def count_std(self, expected: float) -> float:
        return expected / 20 if self.sigma_b is None else self.sigma_b

    def multiplier_of_sum(self, noise_multiplier: float, expected: float) -> float:
        if noise_multiplier == 0:
            return 0.0
        rest = noise_multiplier**-2 - (2 * self.count_std(expected)) ** -2
        if rest <= 0:
            raise ValueError(
                f"sigma_b: noise of {self.count_std(expected):g} on the number of clients within the bound spends more "
                f"than noise multiplier {noise_multiplier:g} allows; set sigma_b to {noise_multiplier:g} or more, or "
                "take larger cohorts"
            )
        return rest**-0.5
