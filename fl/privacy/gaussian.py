"""The Gaussian mechanism.    value = (sum of clipped updates + z * bound * n) / divisor,    n standard normal"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fl.privacy.accounting import dp_accounting
from fl.privacy.mechanism import Groups, Mechanism, Release, Sampling
from fl.privacy.sampling import require_poisson
from fl.registry import register
from fl.tensors.trees import Tree, tree_map

if TYPE_CHECKING:
    from dp_accounting import DpEvent


@register("mechanism", "gaussian")
@dataclass(frozen=True, kw_only=True)
class Gaussian(Mechanism):
    """Independent normal noise on each release; updates are clipped in the Euclidean norm.

    With Poisson sampling this is DP-FedAvg of McMahan, Ramage, Talwar, Zhang 2018, arXiv:1710.06963.
    """

    local: ClassVar[bool] = True

    def check(self, sampling: Sampling) -> None:
        require_poisson(sampling)

    def noise(self, state: Tree, like: Groups, release: Release) -> tuple[Groups, Tree]:
        draws = release.streams.normal(like, "noise", release.index, release.owner)
        return {name: tree_map(lambda leaf: leaf * release.scale, draw) for name, draw in draws.items()}, state

    def std(self, release: Release) -> float:
        return release.scale

    def event(self, noise_multiplier: float, sampling: Sampling, releases: int) -> DpEvent:
        dp = dp_accounting()
        return dp.SelfComposedDpEvent(
            dp.PoissonSampledDpEvent(sampling.rate, dp.GaussianDpEvent(noise_multiplier)), releases
        )
