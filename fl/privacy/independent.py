"""Noise that is independent in each release, for Poisson sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from fl.privacy.accounting import dp_accounting
from fl.privacy.mechanism import Groups, Mechanism, Release, Sampling
from fl.privacy.sampling import require_poisson
from fl.tensors.trees import Tree, tree_map

if TYPE_CHECKING:
    from dp_accounting import DpEvent


class Independent(Mechanism):
    """Base of mechanisms with independent noise: `draws` makes it at scale 1, `one_release` accounts for it."""

    local: ClassVar[bool] = True

    def draws(self, like: Groups, release: Release) -> Groups:
        """Return noise of scale 1 with the shapes of `like`."""
        raise NotImplementedError

    def one_release(self, noise_multiplier: float) -> DpEvent:
        """Return the event of one release of all clients, for dp-accounting."""
        raise NotImplementedError

    def check(self, sampling: Sampling) -> None:
        require_poisson(sampling)

    def noise(self, state: Tree, like: Groups, release: Release) -> tuple[Groups, Tree]:
        draws = self.draws(like, release)
        return {name: tree_map(lambda leaf: leaf * release.scale, draw) for name, draw in draws.items()}, state

    def event(self, noise_multiplier: float, sampling: Sampling, releases: int) -> DpEvent:
        dp, one = dp_accounting(), self.one_release(noise_multiplier)
        return dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(sampling.rate, one), releases)
