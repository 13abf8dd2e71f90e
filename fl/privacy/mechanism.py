"""The interface of mechanisms: the noise of private releases, and the event that an accountant is told.

    release t:    value = (sum of clipped updates + noise_t) / divisor

One client changes the sum by at most the clip bound (neighbours: one client is added or removed). A mechanism
is a pure function: its state goes in and comes out, and random numbers have addresses (fl/privacy/streams.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from fl.method.sampler import CohortSampler
from fl.privacy.streams import Streams
from fl.tensors.trees import Tree

if TYPE_CHECKING:
    from dp_accounting import DpEvent

Groups = Mapping[str, Tree]  # group -> Params or a dense tensor
Norm = Literal["l1", "l2"]


@dataclass(frozen=True)
class Sampling:
    """Who takes part in the releases of a run, as an accountant needs it.

    Args:
        sampler: draws the cohorts.
        rate: probability with which a client takes part in a release, in (0, 1], for a Poisson sampler; it is that of
            the virtual cohort if there is one. NaN for other samplers.
        population: number of clients that may take part.
        releases: number of releases that are planned.
    """

    sampler: CohortSampler
    rate: float
    population: int
    releases: int


@dataclass(frozen=True)
class Release:
    """One noisy sum.

    Args:
        index: number of the release in the run, from 0. Empty cohorts count, too.
        scale: noise multiplier times clip bound; the noise of a sum with sensitivity 1 is multiplied by it.
        sampling: who takes part.
        streams: source of random numbers. Addresses begin with a purpose, such as "noise".
        owner: client that adds the noise (local privacy); -1 for the server.
    """

    index: int
    scale: float
    sampling: Sampling
    streams: Streams
    owner: int = -1


class Mechanism:
    """Base of mechanisms. Subclasses are frozen dataclasses of hyper-parameters.

    Attributes:
        norm: norm in which updates are clipped.
        correlated: whether the noise of one release depends on that of others. The clip bound is then constant.
        local: whether clients can add the noise themselves.
        distributed: whether each client adds a share of the noise of the sum; this needs secure aggregation.
    """

    norm: ClassVar[Norm] = "l2"
    correlated: ClassVar[bool] = False
    local: ClassVar[bool] = False
    distributed: ClassVar[bool] = False

    def check(self, sampling: Sampling) -> None:
        """Check before round 0 that the accountant's assumptions hold for the cohorts that are drawn.

        Raises:
            ValueError: they do not; the message is "reason; way out".
        """
        raise NotImplementedError

    def init(self) -> Tree:
        """Return the state before the first release: a tree that a commit can hold. Default: None."""
        return None

    def noise(self, state: Tree, like: Groups, release: Release) -> tuple[Groups, Tree]:
        """Return (the noise of a release in the form of `like`, next state)."""
        raise NotImplementedError

    def std(self, release: Release) -> float:
        """Return the standard deviation of the noise on each coordinate of the sum."""
        raise NotImplementedError

    def pure_epsilon(self, noise_multiplier: float, sampling: Sampling, releases: int) -> float:
        """Return epsilon of the first `releases` releases at delta 0. Default: infinity."""
        return math.inf

    def event(self, noise_multiplier: float, sampling: Sampling, releases: int) -> DpEvent:
        """Return the event of the first `releases` releases, for dp-accounting."""
        raise NotImplementedError
