"""Laws of mechanisms: the noise of private releases."""

from __future__ import annotations

import importlib.util

import torch

from fl.check.bench import fingerprint
from fl.check.finding import Broken, Law, require_equal
from fl.method.sampler import CohortSampler, Poisson
from fl.privacy.accounting import epsilon
from fl.privacy.mechanism import Groups, Mechanism, Release, Sampling
from fl.privacy.sampling import rate_of
from fl.privacy.streams import Streams
from fl.tensors.params import Params
from fl.tensors.trees import Tree, leaves

RELEASES = 6


def _sampling(part: Mechanism) -> Sampling:
    sampler: CohortSampler = getattr(part, "example_sampler", Poisson(rate=0.5))
    return Sampling(sampler, rate_of(sampler), 40, RELEASES)


def _like(size: int = 3) -> dict[str, Tree]:
    return {"model": Params.of({"w": torch.zeros(size, 2), "b": torch.zeros(3)}), "control": torch.zeros(5)}


def _noise(part: Mechanism, releases: int = RELEASES, seed: int = 1, size: int = 3) -> list[Groups]:
    """Return the noise of the first releases."""
    state, found = part.init(), []
    for index in range(releases):
        noise, state = part.noise(state, _like(size), Release(index, 2.0, _sampling(part), Streams(seed)))
        found.append(noise)
    return found


def noise_has_the_form_of_the_sum(part: Mechanism) -> None:
    """Names, shapes and types are those of the sum; padding holds zeros; all numbers are finite."""
    for noise in _noise(part):
        for name, like in _like().items():
            mine = noise[name]
            if isinstance(like, Params) and (not isinstance(mine, Params) or mine.layout is not like.layout):
                raise Broken(f"the noise of the group {name} is no Params with the tensors of the sum")
            if [t.shape for t in leaves(mine)] != [t.shape for t in leaves(like)]:
                raise Broken(f"the noise of the group {name} has other shapes than the sum")
            if not all(bool(t.isfinite().all()) for t in leaves(mine)):
                raise Broken(f"the noise of the group {name} is not finite")
            if isinstance(mine, Params) and any(
                bool(buffer[a:b].any()) for buffer, gaps in zip(mine.buffers, mine.layout.gaps) for a, b in gaps
            ):
                raise Broken("the padding of Params holds noise; it must hold zeros")


def noise_follows_from_seed_and_release(part: Mechanism) -> None:
    """The same releases get the same noise; another seed gives other noise."""
    one, two, other = _noise(part), _noise(part), _noise(part, seed=2)
    require_equal([fingerprint(dict(n)) for n in two], [fingerprint(dict(n)) for n in one], "noise drawn twice")
    if fingerprint(dict(other[0])) == fingerprint(dict(one[0])):
        raise Broken("two seeds give the same noise")


def noise_has_its_stated_deviation(part: Mechanism) -> str:
    """The standard deviation of the noise of each release is `std` within 6 %."""
    worst = 0.0
    for index, noise in enumerate(_noise(part, size=6000)):
        stated = part.std(Release(index, 2.0, _sampling(part), Streams(1)))
        numbers = torch.cat([t.flatten() for t in leaves(dict(noise))]).double()
        worst = max(worst, abs(float(numbers.square().mean().sqrt()) / stated - 1))
    if worst > 0.06:
        raise Broken(f"the measured deviation differs from std() by {worst:.0%}")
    return f"within {worst:.1%}"


def epsilon_grows_with_releases_and_falls_with_noise(part: Mechanism) -> str | None:
    """More releases never spend less, and more noise never spends more."""
    if importlib.util.find_spec("dp_accounting") is None:
        return "not checked: there is no dp_accounting here"
    sampling = _sampling(part)
    rounds = [epsilon(part.event(2.0, sampling, count), 1e-5) for count in (1, RELEASES // 2, RELEASES)]
    noises = [epsilon(part.event(z, sampling, RELEASES), 1e-5) for z in (1.0, 2.0, 4.0)]
    if rounds != sorted(rounds) or noises != sorted(noises, reverse=True):
        raise Broken(f"epsilon after 1, {RELEASES // 2}, {RELEASES} releases {rounds}; with more noise {noises}")
    return None


LAWS: list[Law] = [
    noise_has_the_form_of_the_sum,
    noise_follows_from_seed_and_release,
    noise_has_its_stated_deviation,
    epsilon_grows_with_releases_and_falls_with_noise,
]
