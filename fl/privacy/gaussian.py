"""The Gaussian mechanism.    value = (sum of clipped updates + z * bound * n) / divisor,    n standard normal"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fl.privacy.accounting import dp_accounting
from fl.privacy.independent import Independent
from fl.privacy.mechanism import Groups, Release
from fl.registry import register

if TYPE_CHECKING:
    from dp_accounting import DpEvent


@register("mechanism", "gaussian")
@dataclass(frozen=True, kw_only=True)
class Gaussian(Independent):
    """Independent normal noise on each release; updates are clipped in the Euclidean norm.

    With Poisson sampling this is DP-FedAvg of McMahan, Ramage, Talwar, Zhang 2018, arXiv:1710.06963.
    """

    def draws(self, like: Groups, release: Release) -> Groups:
        return release.streams.normal(like, "noise", release.index, release.owner)

    def std(self, release: Release) -> float:
        return release.scale

    def one_release(self, noise_multiplier: float) -> DpEvent:
        return dp_accounting().GaussianDpEvent(noise_multiplier)
