"""The cohorts of a benchmark as a sampler. It belongs to the package, so a run does not guard it as a user's part."""

from __future__ import annotations

import numpy as np

from fl.method.sampler import CohortSampler
from fl.tensors.trees import Tree


class FixedCohorts(CohortSampler):
    """Sampler that returns the cohorts of a list, one per round.

    Args:
        cohorts: ids of the clients of each round, ascending.
    """

    def __init__(self, cohorts: list[np.ndarray]):
        self.cohorts = cohorts

    def sample(self, state: Tree, round_: int, seed: int, sizes: np.ndarray) -> tuple[Tree, np.ndarray]:
        return state, self.cohorts[round_]
