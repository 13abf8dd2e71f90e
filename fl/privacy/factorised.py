"""Mechanisms with noise that is correlated over the rounds, so that much of it cancels in the model (DP-FTRL).

    release t:    value_t = (sum_t + bound * z * w_t) / divisor,    w = the noise of a factorisation of prefix sums

A client's participations have to be some rounds apart, which the sampler guarantees.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from fl.checks import one_of, positive
from fl.method.min_separation import MinSeparation
from fl.method.sampler import CohortSampler, Cyclic, Poisson
from fl.privacy import toeplitz, tree
from fl.privacy.accounting import dp_accounting
from fl.privacy.correlated import BandedStream, Noise, Stream, TreeStream
from fl.privacy.mechanism import Groups, Mechanism, Release, Sampling
from fl.privacy.streams import Streams
from fl.registry import name_of, register
from fl.tensors.params import Layout, Params
from fl.tensors.trees import Tree

if TYPE_CHECKING:
    from dp_accounting import DpEvent

Form = tuple[tuple[str, "Layout | tuple[tuple[int, ...], str]"], ...]


def separation_of(sampling: Sampling) -> int:
    """Return the least number of rounds between two participations of a client; 1 permits every round.

    Raises:
        ValueError: the sampler promises nothing.
    """
    sampler = sampling.sampler
    if isinstance(sampler, MinSeparation):
        return sampler.separation
    if isinstance(sampler, Cyclic):
        return sampling.population // sampler.size
    if isinstance(sampler, Poisson):
        return 1
    raise ValueError(
        f"{name_of(sampler)!r} does not bound how often a client takes part; use "
        "{name: min_separation, separation: B}"
    )


class _Factorised(Mechanism):
    """Base of mechanisms whose noise is that of a `Stream`. The state is None: noise can be made again."""

    correlated: ClassVar[bool] = True
    example_sampler: ClassVar[CohortSampler] = MinSeparation(separation=2, rate=0.5)  # for `fl check`

    def noise(self, state: Tree, like: Groups, release: Release) -> tuple[Groups, Tree]:
        form = tuple((name, _form(leaf)) for name, leaf in like.items())
        tensors = iter(_stream(self, release.sampling, release.streams, form).at(release.index))
        scale = self.std_of_draws(release)
        noisy: dict[str, Tree] = {}
        for name, leaf in like.items():
            if isinstance(leaf, Params):
                noisy[name] = Params(leaf.layout, tuple(next(tensors) * scale for _ in leaf.buffers))
            else:
                noisy[name] = next(tensors).reshape(leaf.shape) * scale
        return noisy, state

    def std_of_draws(self, release: Release) -> float:
        """Return the standard deviation of z_t."""
        return release.scale

    def stream(self, sampling: Sampling, streams: Streams, form: Form) -> Stream:
        """Return the noise of all rounds, for z of variance 1."""
        raise NotImplementedError


@register("mechanism", "banded")
@dataclass(frozen=True, kw_only=True)
class Banded(_Factorised):
    """Banded matrix factorisation: w = C^-1 z, C lower triangular Toeplitz with `bands` bands and columns of norm 1.

    With at most as many bands as rounds between participations, a client's columns do not overlap. The account is then
    that of Poisson sampling with the rate of the round's subset, and one release per b rounds (Choquette-Choo et al.
    2023, arXiv:2306.08153). More bands have less noise and no amplification by sampling: the account is that of one
    Gaussian release with the sensitivity of all participations together.
    Neutral: bands=1 is the Gaussian mechanism.

    Args:
        bands: number of bands, at least 1; None: the separation of `privacy.sampling`, at most the number of rounds.
        coefficients: those with the least error in all rounds ("optimised"), or those of the square root of the matrix
            of prefix sums ("square_root").
    """

    bands: int | None = None
    coefficients: Literal["optimised", "square_root"] = "optimised"

    def __post_init__(self) -> None:
        positive(bands=self.bands)
        one_of(("optimised", "square_root"), coefficients=self.coefficients)

    def check(self, sampling: Sampling) -> None:
        toeplitz.check_bands(self._bands(sampling), sampling.releases)
        if isinstance(sampling.sampler, Poisson) and self._bands(sampling) > 1:
            raise ValueError(
                "'poisson' lets a client take part in every round, and then bands do not help; use {name: "
                "min_separation, separation: B}"
            )

    def stream(self, sampling: Sampling, streams: Streams, form: Form) -> Stream:
        return BandedStream(_drawn(streams, form), self._coefficients(sampling).tolist())

    def std_of_draws(self, release: Release) -> float:
        return release.scale * _norm(self._coefficients(release.sampling))

    def std(self, release: Release) -> float:
        first = toeplitz.inverse(self._coefficients(release.sampling), release.index + 1)
        return self.std_of_draws(release) * _norm(first)

    def event(self, noise_multiplier: float, sampling: Sampling, releases: int) -> DpEvent:
        dp, separation = dp_accounting(), separation_of(sampling)
        if self._bands(sampling) <= separation:
            rate = 1.0 if isinstance(sampling.sampler, Cyclic) else sampling.rate * separation
            if rate > 1 + 1e-9:
                raise ValueError(f"rate: {rate:g} of a subset of clients is more than 1; use a smaller cohort")
            once = dp.GaussianDpEvent(noise_multiplier)
            if rate < 1 - 1e-9:
                once = dp.PoissonSampledDpEvent(rate, once)
            return dp.SelfComposedDpEvent(once, toeplitz.most_participations(releases, separation))
        coefficients = self._coefficients(sampling)
        size = toeplitz.sensitivity(coefficients, releases, separation) / _norm(coefficients)
        return dp.GaussianDpEvent(noise_multiplier / size)

    def _bands(self, sampling: Sampling) -> int:
        return min(separation_of(sampling), sampling.releases) if self.bands is None else self.bands

    def _coefficients(self, sampling: Sampling) -> toeplitz.Floats:
        if self.coefficients == "square_root":
            return toeplitz.square_root(self._bands(sampling))
        return toeplitz.optimised(self._bands(sampling), sampling.releases)


@register("mechanism", "tree")
@dataclass(frozen=True, kw_only=True)
class TreeAggregation(_Factorised):
    """Tree aggregation (DP-FTRL, Kairouz et al. 2021, arXiv:2103.00039): noise on the nodes of a tree over the rounds.

    The account does not use sampling: it is that of one Gaussian release of all nodes, with the sensitivity of all
    participations that the sampler permits.

    Args:
        restart: rounds of a tree, at least 1; a new tree begins after them. None: one tree for the whole run.
        variance_reduction: also use the noise of lower nodes in the estimate of a node (Honaker 2015).
    """

    restart: int | None = None
    variance_reduction: bool = True

    def __post_init__(self) -> None:
        positive(restart=self.restart)

    def check(self, sampling: Sampling) -> None:
        if isinstance(sampling.sampler, Poisson):
            raise ValueError(
                "'poisson' lets a client take part in every round, and the account of 'tree' does not use sampling; "
                "use {name: min_separation, separation: B}"
            )
        separation_of(sampling)

    def stream(self, sampling: Sampling, streams: Streams, form: Form) -> Stream:
        return TreeStream(_drawn(streams, form), self.restart, self.variance_reduction)

    def std(self, release: Release) -> float:
        within = release.index if self.restart is None else release.index % self.restart
        return release.scale * math.sqrt(tree.increment_variance(within, self.variance_reduction))

    def event(self, noise_multiplier: float, sampling: Sampling, releases: int) -> DpEvent:
        size = tree.sensitivity(releases, self.restart, separation_of(sampling))
        return dp_accounting().GaussianDpEvent(noise_multiplier / size)


def _norm(coefficients: toeplitz.Floats) -> float:
    return float(math.sqrt(coefficients @ coefficients))


@functools.lru_cache(maxsize=2)  # the buffers of a run; without them the rounds before are drawn again
def _stream(mechanism: _Factorised, sampling: Sampling, streams: Streams, form: Form) -> Stream:
    return mechanism.stream(sampling, streams, form)


def _form(leaf: Tree) -> Layout | tuple[tuple[int, ...], str]:
    return leaf.layout if isinstance(leaf, Params) else (tuple(leaf.shape), str(leaf.dtype).removeprefix("torch."))


def _drawn(streams: Streams, form: Form) -> functools.partial[Noise]:
    return functools.partial(_draw, streams, {name: _like(one) for name, one in form})


def _like(form: Layout | tuple[tuple[int, ...], str]) -> Tree:
    """Return a group of a form, without values."""
    if isinstance(form, Layout):
        return Params(form, ())
    return torch.empty(form[0], dtype=getattr(torch, form[1]), device="meta")


def _draw(streams: Streams, like: Groups, round_: int, number: int) -> Noise:
    """Return independent noise, at the addresses of the Gaussian mechanism if `number` is 0."""
    address = ("noise", round_, -1) if number == 0 else ("noise", round_, -1, number)
    drawn = streams.normal(like, *address)
    return [tensor for leaf in drawn.values() for tensor in (leaf.buffers if isinstance(leaf, Params) else (leaf,))]
