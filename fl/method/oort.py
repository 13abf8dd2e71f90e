"""Oort: guided selection of clients that help the model and are fast.

Lai, Zhu, Madhyastha, Chowdhury 2021, arXiv:2010.06081, Algorithm 1. In round R = 1, 2, ... an explored client i, which
was last involved in round L_i and took t_i seconds, has the utility

    U_i = (|B_i| sqrt(mean loss^2) + sqrt(0.1 log R / L_i)) * (T / t_i)^alpha        the last factor only if t_i > T

Differs from the paper: the mean training loss stands for sqrt(mean loss^2), see `metric`. T is fixed, there is no
pacer. Unexplored clients are drawn uniformly, because their speed is not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from fl.checks import at_least, not_negative, positive, within
from fl.method.sampler import CohortSampler, check_size, draw_weighted
from fl.registry import register
from fl.tensors.trees import Tree


@dataclass(frozen=True)
class OortState:
    """What Oort knows of each client. Arrays are (N,).

    Attributes:
        round: R, the number of rounds that have been drawn.
        utility: |B| times the loss at the client's last participation; 0 if it has never answered.
        duration: its last duration in seconds; NaN if unknown.
        last: L, the round of its last participation, from 1; 0 for an unexplored client.
        times: number of its participations.
    """

    round: int
    utility: np.ndarray
    duration: np.ndarray
    last: np.ndarray
    times: np.ndarray


@register("cohort", "oort")
@dataclass(frozen=True, kw_only=True)
class Oort(CohortSampler):
    """Explore some new clients, and exploit those of large utility: large losses, many samples, short durations.

    In round r (from 0) the share max(epsilon * decay^r, min_epsilon) of the cohort is new clients. The others are
    drawn with probability proportional to their utility, from the clients with at least `cutoff` times the utility of
    the last one that would be in if the best were taken.

    Args:
        size: number of clients in a cohort, at least 1.
        epsilon: share of new clients in round 0, in [0, 1].
        decay: factor of this share per round, in (0, 1].
        min_epsilon: lowest share of new clients, in [0, 1].
        seconds: T, preferred duration of a round in seconds of virtual time, positive. None: no penalty.
        alpha: exponent of the penalty for longer durations, 0 or more.
        cutoff: share of the utility of the last of the best clients from which on others are admitted, in (0, 1].
        clip: quantile of all utilities to which larger ones are reduced, in (0, 1]. 1: they are not reduced.
        max_times: a client that has taken part so often is left out, at least 1; all are allowed again when fewer
            than `size` clients are left. None: no limit.
        metric: the clients' metric that stands for sqrt(mean loss^2) over their samples.
    """

    size: int
    epsilon: float = 0.9
    decay: float = 0.98
    min_epsilon: float = 0.2
    seconds: float | None = None
    alpha: float = 2.0
    cutoff: float = 0.95
    clip: float = 0.95
    max_times: int | None = 10
    metric: str = "loss"

    def __post_init__(self) -> None:
        within("[0, 1]", epsilon=self.epsilon, min_epsilon=self.min_epsilon)
        within("(0, 1]", decay=self.decay, cutoff=self.cutoff, clip=self.clip)
        positive(seconds=self.seconds)
        not_negative(alpha=self.alpha)
        at_least(1, max_times=self.max_times)

    def check(self, population: int) -> None:
        check_size(self.size, population)

    def min_present(self, population: int) -> int:
        return self.size

    def init(self, population: int) -> OortState:
        self.check(population)
        zeros = np.zeros(population, np.int64)
        return OortState(0, np.zeros(population), np.full(population, np.nan), zeros, zeros)

    def sample(self, state: OortState, round_: int, seed: int, sizes: np.ndarray) -> tuple[Tree, np.ndarray]:
        state = replace(state, round=round_ + 1)
        clients = np.flatnonzero(sizes)
        if self.size > len(clients):
            raise ValueError(f"size: {self.size} of {len(clients)} clients that are available and have samples")
        if self.max_times is not None:
            allowed = clients[state.times[clients] < self.max_times]
            clients = allowed if len(allowed) >= self.size else clients
        new, explored = clients[state.last[clients] == 0], clients[state.last[clients] > 0]
        share = max(self.epsilon * self.decay**round_, self.min_epsilon)
        explore = max(min(round(share * self.size), len(new)), self.size - len(explored))
        ones = np.ones(len(new))
        cohort = [draw_weighted(explore, new, ones, seed, "cohort", round_, "explore")]
        if exploit := self.size - explore:
            utility = self.utilities(state, explored)
            admitted = utility >= self.cutoff * np.sort(utility)[-exploit]
            weights = np.maximum(utility[admitted], 1e-300)  # a utility of 0 is drawn last
            cohort.append(draw_weighted(exploit, explored[admitted], weights, seed, "cohort", round_, "exploit"))
        return state, np.sort(np.concatenate(cohort))

    def utilities(self, state: OortState, clients: np.ndarray) -> np.ndarray:
        """Return the utilities of explored clients in the present round, (n,)."""
        own = state.utility[clients]
        if len(own):
            own = np.minimum(own, np.quantile(own, self.clip))
        utility = own + np.sqrt(0.1 * np.log(state.round) / state.last[clients])
        if self.seconds is None:
            return utility
        slow = state.duration[clients] > self.seconds  # False for unknown durations
        return np.where(slow, utility * (self.seconds / state.duration[clients]) ** self.alpha, utility)

    def observe(
        self, state: OortState, cohort: np.ndarray, metrics: Mapping[str, np.ndarray], durations: np.ndarray
    ) -> OortState:
        answered = metrics["answered"] > 0
        if answered.any() and self.metric not in metrics:
            raise ValueError(f"cohort.metric: clients send no {self.metric!r}; they send {sorted(metrics)}")
        utility, duration, last, times = (x.copy() for x in (state.utility, state.duration, state.last, state.times))
        last[cohort] = state.round
        times[cohort] += 1
        here = cohort[answered]
        if len(here):
            utility[here] = np.nan_to_num(metrics["num_examples"][answered] * metrics[self.metric][answered])
            duration[here] = durations[answered]
        return replace(state, utility=utility, duration=duration, last=last, times=times)
