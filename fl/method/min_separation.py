"""A sampler in which a client takes part at most once in b rounds, as matrix factorisation for privacy assumes."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl.checks import positive, within
from fl.method.sampler import CohortSampler, random_subset
from fl.registry import register
from fl.tensors import random
from fl.tensors.trees import Tree


@register("cohort", "min_separation")
@dataclass(frozen=True, kw_only=True)
class MinSeparation(CohortSampler):
    """A Poisson sample of the round's subset of clients; a client takes part at most once in `separation` rounds.

    The clients are divided once, at random, into b = `separation` subsets of equal size (plus or minus 1). Round t
    draws each client of subset t mod b independently with probability `rate` (Choquette-Choo et al. 2023,
    arXiv:2306.08153, Algorithm 2).
    The expected cohort of N clients is rate * N / b. separation=1 is `poisson`.

    >>> sampler = MinSeparation(separation=2)
    >>> first, second, third = (sampler.sample(None, r, seed=0, sizes=np.ones(6))[1].tolist() for r in range(3))
    >>> len(first), sorted(first + second), first == third
    (3, [0, 1, 2, 3, 4, 5], True)

    Args:
        separation: number b of subsets, at least 1 and at most the number of clients.
        rate: probability of each client of the round's subset, in (0, 1]. With 1 all of them take part.
    """

    separation: int
    rate: float = 1.0
    among_present: ClassVar[bool] = False

    def __post_init__(self) -> None:
        positive(separation=self.separation)
        within("(0, 1]", rate=self.rate)

    def check(self, population: int) -> None:
        if self.separation > population:
            raise ValueError(f"separation: {self.separation} subsets of {population} clients; use 1..{population}")

    def sample(self, state: Tree, round_: int, seed: int, sizes: np.ndarray) -> tuple[Tree, np.ndarray]:
        state = seed if state is None else state  # the subsets stay, also if each round has a seed of its own
        subset = _subset(len(sizes), self.separation, round_ % self.separation, state)
        generator = random.numpy_generator(seed, "cohort", round_)
        chosen = random_subset(generator, len(subset), int(generator.binomial(len(subset), self.rate)))
        return state, subset[chosen]


@functools.lru_cache(maxsize=1024)
def _subset(population: int, subsets: int, index: int, seed: int) -> np.ndarray:
    """Return the clients of one subset, ids ascending."""
    return np.sort(_order(population, seed)[index::subsets])


@functools.lru_cache(maxsize=4)
def _order(population: int, seed: int) -> np.ndarray:
    return random.permutation(population, seed, "min_separation")
