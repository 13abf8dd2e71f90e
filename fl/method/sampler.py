"""Cohort samplers: which clients take part in a round.

    state, cohort = sample(state, round_, seed, sizes)
    state, cohort = choose(state, cohort, losses)                   # only if the sampler overrides it
    state = observe(state, cohort, metrics, durations)              # after the round

Random draws have the address (seed, "cohort", round). The samplers of this module have no state (None). Samplers that
learn from the rounds are in power_of_choice.py and oort.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl.checks import positive, within
from fl.registry import register
from fl.tensors import random
from fl.tensors.trees import Tree

DEFAULTS = {"cohort": "uniform"}  # kind -> part that a configuration uses if it names none


class CohortSampler:
    """Base of samplers. Subclasses are frozen dataclasses of hyper-parameters.

    Attributes:
        among_present: used if a system model makes clients unavailable at times. True: draw from the available clients.
            False: draw from all clients, and let the round wait until the drawn ones are available.
    """

    among_present: ClassVar[bool] = True

    def init(self, population: int) -> Tree:
        """Return the state before round 0, for a number of clients."""
        self.check(population)
        return None

    def check(self, population: int) -> None:
        """Check that the sampler fits a number of clients.

        Raises:
            ValueError: it does not.
        """

    def min_present(self, population: int) -> int:
        """Return how many clients must be available before the sampler can draw."""
        return 1

    def largest(self, population: int) -> int:
        """Return the largest cohort that the sampler can draw. Default: all clients."""
        return population

    def sample(self, state: Tree, round_: int, seed: int, sizes: np.ndarray) -> tuple[Tree, np.ndarray]:
        """Draw the cohort of a round: (next state, ids of the clients). Ids are int64, ascending and distinct, (n,).

        Args:
            state: the sampler's state.
            round_: the round, from 0.
            seed: seed of the run.
            sizes: number of training samples of each client, (N,).
        """
        raise NotImplementedError

    def choose(self, state: Tree, candidates: np.ndarray, losses: np.ndarray) -> tuple[Tree, np.ndarray]:
        """Choose the cohort among the clients that `sample` drew: (next state, ids of the clients, ascending).

        If a sampler overrides this method, the engine evaluates the present model on the candidates' training data
        before each round. The ledger has the model down to each candidate and 8 bytes up; virtual time passes.

        Args:
            state: the sampler's state.
            candidates: ids of the candidates, ascending, (d,).
            losses: their mean losses, (d,). NaN for a candidate that did not answer.
        """
        return state, candidates

    def observe(
        self, state: Tree, cohort: np.ndarray, metrics: Mapping[str, np.ndarray], durations: np.ndarray
    ) -> Tree:
        """Return the state after a round, from what the round showed. Default: the same state, at no cost.

        A sampler that overrides this method knows clients by their ids. So, with a system model, `sample` gets the
        sizes of all clients, and size 0 for those that are not available.

        Args:
            state: the sampler's state.
            cohort: ids of the round's clients, ascending, (n,).
            metrics: the clients' metrics by name, (n,) each, NaN where a client sent none. "answered" is 1 if the
                client's update was used, else 0. "num_examples" is its number of training samples, 0 without update.
            durations: seconds of virtual time from broadcast to arrival, summed over the round's exchanges, (n,). NaN
                without a system model, and for a client whose update was not used.
        """
        return state

    @property
    def chooses(self) -> bool:
        """Whether the sampler needs the losses of candidates."""
        return type(self).choose is not CohortSampler.choose

    @property
    def observes(self) -> bool:
        """Whether the sampler learns from the rounds."""
        return type(self).observe is not CohortSampler.observe


@register("cohort", "uniform")
@dataclass(frozen=True, kw_only=True)
class Uniform(CohortSampler):
    """A uniform sample without replacement. Give one of `size` and `fraction`.

    >>> Uniform(fraction=0.5).sample(None, round_=0, seed=0, sizes=np.ones(6))[1].shape
    (3,)

    Args:
        size: number of clients in a cohort, at least 1.
        fraction: fraction of the clients, in (0, 1]; rounded to at least one client.
    """

    size: int | None = None
    fraction: float | None = None

    def __post_init__(self) -> None:
        if (self.size is None) == (self.fraction is None):
            raise ValueError(f"size: {self.size} and fraction: {self.fraction}: give one of the two")
        within("(0, 1]", fraction=self.fraction)

    def check(self, population: int) -> None:
        check_size(self._size(population), population)

    def min_present(self, population: int) -> int:
        return self.size or 1

    def largest(self, population: int) -> int:
        return self._size(population)

    def sample(self, state: Tree, round_: int, seed: int, sizes: np.ndarray) -> tuple[Tree, np.ndarray]:
        return state, random_subset(random.numpy_generator(seed, "cohort", round_), len(sizes), self._size(len(sizes)))

    def _size(self, population: int) -> int:
        if self.size is not None:
            return self.size
        assert self.fraction is not None
        return max(1, round(self.fraction * population))


@register("cohort", "poisson")
@dataclass(frozen=True, kw_only=True)
class Poisson(CohortSampler):
    """Each client independently with probability `rate`, as privacy accounting assumes. A cohort may be empty.

    The number of clients is drawn first (binomial), then a uniform set of this size. The distribution is the same, and
    the cost is O(cohort).

    >>> Poisson(rate=1.0).sample(None, round_=0, seed=0, sizes=np.ones(3))[1]
    array([0, 1, 2])

    Args:
        rate: probability of each client, in (0, 1].
    """

    rate: float

    def __post_init__(self) -> None:
        within("(0, 1]", rate=self.rate)

    def sample(self, state: Tree, round_: int, seed: int, sizes: np.ndarray) -> tuple[Tree, np.ndarray]:
        generator = random.numpy_generator(seed, "cohort", round_)
        return state, random_subset(generator, len(sizes), int(generator.binomial(len(sizes), self.rate)))


@register("cohort", "weighted")
@dataclass(frozen=True, kw_only=True)
class Weighted(CohortSampler):
    """Draw one client after another without replacement, with probability proportional to its training samples.

    The cohort has the smallest keys -log(u_c) / n_c, with u_c uniform and n_c training samples (Efraimidis, Spirakis
    2006).

    >>> Weighted(size=2).sample(None, round_=0, seed=0, sizes=np.array([5, 0, 7]))[1]
    array([0, 2])

    Args:
        size: number of clients in a cohort, at least 1.
    """

    size: int

    def check(self, population: int) -> None:
        check_size(self.size, population)

    def min_present(self, population: int) -> int:
        return self.size

    def largest(self, population: int) -> int:
        return self.size

    def sample(self, state: Tree, round_: int, seed: int, sizes: np.ndarray) -> tuple[Tree, np.ndarray]:
        clients = np.flatnonzero(sizes)
        if self.size > len(clients):
            raise ValueError(f"size: {self.size} clients of {len(clients)} that have training samples")
        return state, np.sort(draw_weighted(self.size, clients, sizes[clients], seed, "cohort", round_))


@register("cohort", "cyclic")
@dataclass(frozen=True, kw_only=True)
class Cyclic(CohortSampler):
    """The next `size` clients in the order of their ids, starting again after the last one.

    >>> [Cyclic(size=3).sample(None, r, seed=0, sizes=np.ones(5))[1].tolist() for r in range(3)]
    [[0, 1, 2], [0, 3, 4], [1, 2, 3]]

    Args:
        size: number of clients in a cohort, at least 1.
    """

    size: int
    among_present: ClassVar[bool] = False

    def check(self, population: int) -> None:
        check_size(self.size, population)

    def largest(self, population: int) -> int:
        return self.size

    def sample(self, state: Tree, round_: int, seed: int, sizes: np.ndarray) -> tuple[Tree, np.ndarray]:
        return state, np.sort((round_ * self.size + np.arange(self.size)) % len(sizes))


@register("cohort", "fixed")
@dataclass(frozen=True, kw_only=True)
class Fixed(CohortSampler):
    """The same clients in every round.

    >>> Fixed(clients=(4, 0)).sample(None, round_=7, seed=0, sizes=np.ones(5))[1]
    array([0, 4])

    Args:
        clients: ids of the clients, from 0, each once.
    """

    clients: tuple[int, ...]
    among_present: ClassVar[bool] = False

    def check(self, population: int) -> None:
        if not self.clients or len(set(self.clients)) < len(self.clients):
            raise ValueError(f"clients: {self.clients} is empty or names a client twice")
        if min(self.clients) < 0 or max(self.clients) >= population:
            raise ValueError(f"clients: {self.clients} are not all in 0..{population - 1}")

    def largest(self, population: int) -> int:
        return len(self.clients)

    def sample(self, state: Tree, round_: int, seed: int, sizes: np.ndarray) -> tuple[Tree, np.ndarray]:
        return state, np.sort(np.array(self.clients, np.int64))


def check_size(size: int, population: int) -> None:
    """Check that a cohort of `size` clients can be drawn from a population.

    Raises:
        ValueError: it cannot.
    """
    positive(size=size)
    if size > population:
        raise ValueError(
            f"size: {size} clients of a population of {population}; use 1..{population} or more partition.clients"
        )


def draw_weighted(size: int, clients: np.ndarray, weights: np.ndarray, *address: int | str) -> np.ndarray:
    """Draw `size` clients one after another without replacement, with probability proportional to positive weights.

    These are the clients with the smallest keys -log(u_c) / w_c, u_c uniform (Efraimidis, Spirakis 2006). The result
    is in the order of drawing.

    Args:
        size: number of clients, at most n.
        clients: ids, (n,); the last part of the address of u_c.
        weights: w_c, (n,).
        address: the first parts of the address of u_c.
    """
    keys = -np.log1p(-random.uniform(*address, clients)) / weights
    if size < len(keys):
        smallest = np.argpartition(keys, size)[:size]
        keys, clients = keys[smallest], clients[smallest]
    return clients[np.argsort(keys, kind="stable")]


def random_subset(generator: np.random.Generator, population: int, size: int) -> np.ndarray:
    """Draw a uniform subset of 0..population-1, ascending, (size,)."""
    return np.sort(generator.choice(population, size, replace=False, shuffle=False))
