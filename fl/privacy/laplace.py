"""The Laplace mechanism.    value = (sum of clipped updates + b * bound * n) / divisor,    n Laplace of scale 1"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl.privacy.accounting import dp_accounting
from fl.privacy.independent import Independent
from fl.privacy.mechanism import Groups, Norm, Release, Sampling
from fl.registry import register

if TYPE_CHECKING:
    from dp_accounting import DpEvent


@register("mechanism", "laplace")
@dataclass(frozen=True, kw_only=True)
class Laplace(Independent):
    """Independent Laplace noise on each release; updates are clipped in the L1 norm (sum of absolute values).

    The noise multiplier b is the scale of the noise for a clip bound of 1; its variance is 2 b^2. One release of a
    whole population has epsilon 1 / b at delta 0 (Dwork, McSherry, Nissim, Smith 2006).
    """

    norm: ClassVar[Norm] = "l1"

    def draws(self, like: Groups, release: Release) -> Groups:
        return release.streams.laplace(like, "noise", release.index, release.owner)

    def std(self, release: Release) -> float:
        return math.sqrt(2) * release.scale

    def pure_epsilon(self, noise_multiplier: float, sampling: Sampling, releases: int) -> float:
        # amplification by sampling: log(1 + q (e^eps - 1)), Balle, Barthe, Gaboardi 2018; releases add up
        return releases * math.log1p(sampling.rate * math.expm1(1 / noise_multiplier))

    def one_release(self, noise_multiplier: float) -> DpEvent:
        return dp_accounting().LaplaceDpEvent(noise_multiplier)
