"""Who takes part in a round.

    state, cohort = sample(state, round_, seed, sizes)      cohort: ascending, distinct client ids (int64)

`sizes` (N,) are the clients' numbers of training samples. Draws are addressed by (seed, "cohort", round_). A sampler's state is
a value like any other; the ones here need none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl.registry import register
from fl.tensors import random
from fl.tensors.trees import Tree

DEFAULTS = {"cohort": "uniform"}  # kind -> part of a configuration that names none


class CohortSampler:
    """Base of samplers: frozen dataclasses of their parameters.

    among_present: it draws from the clients who are there, where a system model says that some are not; else it names clients, and
    a round waits for those.
    """

    among_present: ClassVar[bool] = True

    def init(self, population: int) -> Tree:
        """The state before round 0."""
        self.check(population)
        return None

    def check(self, population: int) -> None:
        """A `ValueError` if this sampler cannot draw from so many clients."""

    def least(self, population: int) -> int:
        """How many clients there have to be to draw from, of a population in which not all are there."""
        return 1

    def sample(self, state: Tree, round_: int, seed: int, sizes: np.ndarray) -> tuple[Tree, np.ndarray]:
        raise NotImplementedError


@register("cohort", "uniform")
@dataclass(frozen=True, kw_only=True)
class Uniform(CohortSampler):
    """`size` clients, or the `fraction` of the population (rounded, at least one), each set equally likely."""

    size: int | None = None
    fraction: float | None = None

    def __post_init__(self):
        if (self.size is None) == (self.fraction is None):
            raise ValueError(f"size: {self.size} and fraction: {self.fraction}: give one of the two")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ValueError(f"fraction: {self.fraction} is not in (0, 1]")

    def check(self, population):
        _check_size(self._size(population), population)

    def least(self, population):
        return self.size or 1

    def sample(self, state, round_, seed, sizes):
        return state, _subset(random.numpy_generator(seed, "cohort", round_), len(sizes), self._size(len(sizes)))

    def _size(self, population: int) -> int:
        if self.size is not None:
            return self.size
        assert self.fraction is not None
        return max(1, round(self.fraction * population))


@register("cohort", "poisson")
@dataclass(frozen=True, kw_only=True)
class Poisson(CohortSampler):
    """Each client by itself with probability `rate`; a cohort may be empty. The sampling that privacy accounting assumes.

    Drawn as a binomial number of clients, then a uniform set of that many: the same distribution, in O(cohort).
    """

    rate: float

    def __post_init__(self):
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate: {self.rate} is not in (0, 1]")

    def sample(self, state, round_, seed, sizes):
        generator = random.numpy_generator(seed, "cohort", round_)
        return state, _subset(generator, len(sizes), int(generator.binomial(len(sizes), self.rate)))


@register("cohort", "weighted")
@dataclass(frozen=True, kw_only=True)
class Weighted(CohortSampler):
    """`size` clients one after another without replacement, each time with probability proportional to training samples.

    The clients of the `size` smallest keys -log(u_c) / n_c, u_c uniform (Efraimidis, Spirakis 2006).
    """

    size: int

    def check(self, population):
        _check_size(self.size, population)

    def least(self, population):
        return self.size

    def sample(self, state, round_, seed, sizes):
        clients = np.flatnonzero(sizes)
        if self.size > len(clients):
            raise ValueError(f"size: {self.size} clients of {len(clients)} that have training samples")
        keys = -np.log1p(-random.uniform(seed, "cohort", round_, clients)) / sizes[clients]
        return state, np.sort(clients[np.argpartition(keys, self.size - 1)[: self.size]])


@register("cohort", "cyclic")
@dataclass(frozen=True, kw_only=True)
class Cyclic(CohortSampler):
    """`size` clients after another `size`, in the order of their ids, round and round."""

    size: int
    among_present: ClassVar[bool] = False

    def check(self, population):
        _check_size(self.size, population)

    def sample(self, state, round_, seed, sizes):
        return state, np.sort((round_ * self.size + np.arange(self.size)) % len(sizes))


@register("cohort", "fixed")
@dataclass(frozen=True, kw_only=True)
class Fixed(CohortSampler):
    """The same `clients` in every round."""

    clients: tuple[int, ...]
    among_present: ClassVar[bool] = False

    def check(self, population):
        if not self.clients or len(set(self.clients)) < len(self.clients):
            raise ValueError(f"clients: {self.clients} is empty or names a client twice")
        if min(self.clients) < 0 or max(self.clients) >= population:
            raise ValueError(f"clients: {self.clients} are not all in 0..{population - 1}")

    def sample(self, state, round_, seed, sizes):
        return state, np.sort(np.array(self.clients, np.int64))


def _check_size(size: int, population: int) -> None:
    if size < 1:
        raise ValueError(f"size: {size} is not positive")
    if size > population:
        raise ValueError(
            f"size: {size} clients of a population of {population}; use 1..{population} or more partition.clients"
        )


def _subset(generator: np.random.Generator, population: int, size: int) -> np.ndarray:
    return np.sort(generator.choice(population, size, replace=False, shuffle=False))
