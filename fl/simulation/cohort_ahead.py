"""The cohort of the next round, drawn while workers train that of the present one.

A draw waits for its round if it may depend on the present one: a sampler that learns from rounds or chooses by losses,
virtual time in which clients come and go, a private run, or a user's sampler.
"""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import numpy as np

from fl.execution.global_draws import has_users_code
from fl.simulation.setup import RunSetup
from fl.tensors.trees import Tree


class _Draw(NamedTuple):
    """A draw for a round from the sampler's state before it: (state after it, cohort)."""

    state: Tree
    round: int
    found: tuple[Tree, np.ndarray]


class CohortAhead:
    """Draws cohorts in their rounds or ahead of them. It has no state that a run needs to continue."""

    def __init__(self, run_setup: RunSetup):
        self.run_setup, self.config, self.sampler = run_setup, run_setup.config, run_setup.config.cohort
        waits = self.sampler.observes or self.sampler.chooses or has_users_code(self.sampler)
        timed = run_setup.system is not None and not run_setup.system.always and self.sampler.among_present
        self.possible = not (waits or timed or self.config.privacy is not None)
        self.last: tuple[Tree, int] | None = None  # the sampler's state after the last draw, and the round of the next
        self.drawn: _Draw | None = None

    def sample(self, state: Tree, round_: int, seed: int, sizes: np.ndarray) -> tuple[Tree, np.ndarray]:
        """Return what the sampler draws for a round, see `CohortSampler.sample`."""
        drawn, self.drawn = self.drawn, None
        ready = drawn is not None and drawn.state is state and drawn.round == round_
        found = drawn.found if drawn is not None and ready else self.sampler.sample(state, round_, seed, sizes)
        self.last = found[0], round_ + 1
        return found

    def draw(self) -> None:
        """Draw the cohort of the next round now, if that is possible. An error comes again in that round."""
        if not self.possible or self.drawn is not None or self.last is None or self.last[1] >= self.config.rounds:
            return
        state, round_ = self.last
        with contextlib.suppress(Exception):
            found = self.sampler.sample(state, round_, self.config.seed, self.run_setup.trainable_sizes(round_))
            self.drawn = _Draw(state, round_, found)
