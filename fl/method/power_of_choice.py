"""Power-of-choice: prefer clients on whose data the model still has a large loss.

Cho, Wang, Joshi 2020, arXiv:2010.01243. Candidates are drawn with probability proportional to their training samples;
those with the largest losses form the cohort.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fl.checks import positive
from fl.method.sampler import CohortSampler, check_size, draw_weighted
from fl.registry import register
from fl.tensors.trees import Tree


@dataclass(frozen=True, kw_only=True)
class _FromCandidates(CohortSampler):
    """A cohort of `size` clients out of d candidates.

    Args:
        size: number of clients in a cohort, at least 1.
        candidates: number d of candidates, from `size` to the number of clients.
    """

    size: int
    candidates: int

    def __post_init__(self) -> None:
        positive(size=self.size)
        if self.candidates < self.size:
            raise ValueError(f"candidates: {self.candidates} is less than size: {self.size}")

    def check(self, population: int) -> None:
        check_size(self.size, population)
        if self.candidates > population:
            raise ValueError(f"candidates: {self.candidates} of a population of {population}; use at most {population}")

    def min_present(self, population: int) -> int:
        return self.candidates

    def _draw(self, round_: int, seed: int, sizes: np.ndarray) -> np.ndarray:
        """Return the ids of the candidates in the order of drawing, (d,)."""
        clients = np.flatnonzero(sizes)
        if self.candidates > len(clients):
            raise ValueError(f"candidates: {self.candidates} of {len(clients)} clients that have training samples")
        return draw_weighted(self.candidates, clients, sizes[clients], seed, "cohort", round_)


def largest(size: int, clients: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Return the `size` clients with the largest losses, ascending. The first one wins a tie; NaN never wins.

    >>> largest(2, np.array([4, 7, 9]), np.array([1.0, np.nan, 3.0]))
    array([4, 9])
    """
    known = ~np.isnan(losses)
    clients, losses = clients[known], losses[known]
    return np.sort(clients[np.argsort(-losses, kind="stable")[:size]])


@register("cohort", "power_of_choice")
@dataclass(frozen=True, kw_only=True)
class PowerOfChoice(_FromCandidates):
    """Evaluate the present model on d candidates, and take those with the largest losses (pow-d).

    Candidates are drawn without replacement, with probability proportional to their training samples. Each one
    evaluates the model on all its training data. Neutral: `candidates` equal to `size` is `weighted`.

    >>> PowerOfChoice(size=1, candidates=2).choose(None, np.array([3, 5]), np.array([0.5, 2.0]))[1]
    array([5])

    Args:
        size: number of clients in a cohort, at least 1.
        candidates: number d of candidates, from `size` to the number of clients.
    """

    def sample(self, state: Tree, round_: int, seed: int, sizes: np.ndarray) -> tuple[Tree, np.ndarray]:
        return state, np.sort(self._draw(round_, seed, sizes))

    def choose(self, state: Tree, candidates: np.ndarray, losses: np.ndarray) -> tuple[Tree, np.ndarray]:
        return state, largest(self.size, candidates, losses)


@register("cohort", "rpow")
@dataclass(frozen=True, kw_only=True)
class LastLosses(_FromCandidates):
    """Power-of-choice with the clients' last training losses in place of evaluations (rpow-d). It costs no bytes.

    A client that has not trained yet has an infinite loss. Ties go to the candidate that was drawn first.

    Args:
        size: number of clients in a cohort, at least 1.
        candidates: number d of candidates, from `size` to the number of clients.
    """

    def init(self, population: int) -> Tree:
        super().init(population)
        return np.full(population, np.inf)

    def sample(self, state: Tree, round_: int, seed: int, sizes: np.ndarray) -> tuple[Tree, np.ndarray]:
        drawn = self._draw(round_, seed, sizes)
        return state, largest(self.size, drawn, state[drawn])

    def observe(
        self, state: Tree, cohort: np.ndarray, metrics: Mapping[str, np.ndarray], durations: np.ndarray
    ) -> Tree:
        losses = metrics.get("loss", np.full(len(cohort), np.nan))
        known = ~np.isnan(losses)
        after = state.copy()
        after[cohort[known]] = losses[known]
        return after
