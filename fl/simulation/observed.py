"""What a round shows of its clients, for samplers that learn (`CohortSampler.observe`)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fl.method.sampler import CohortSampler
from fl.tensors.trees import Tree


class Observed:
    """Collects the clients' metrics and durations over the exchanges of a round."""

    def begin(self, cohort: np.ndarray) -> None:
        """Begin a round of `cohort`, ids ascending, (n,)."""
        n = len(cohort)
        self.cohort, self.seconds = cohort, np.full(n, np.nan)
        self.metrics = {"answered": np.zeros(n), "num_examples": np.zeros(n)}

    def add(
        self, clients: np.ndarray, answered: np.ndarray, examples: np.ndarray, metrics: Mapping[str, np.ndarray]
    ) -> None:
        """Add an exchange. A later exchange of a round replaces the numbers of an earlier one.

        Args:
            clients: ids, (m,). Clients outside the cohort are left out.
            answered: whether the client's update is used, bool (m,).
            examples: numbers of training samples, (m,).
            metrics: metrics by name, (m,) each; NaN where a client sent none.
        """
        at, here = self._places(clients)
        answered = answered[here]
        self.metrics["answered"][at] = answered
        self.metrics["num_examples"][at] = np.where(answered, examples[here], 0)
        for name, values in metrics.items():
            column = self.metrics.setdefault(name, np.full(len(self.cohort), np.nan))
            known = answered & ~np.isnan(values[here])
            column[at[known]] = values[here][known]

    def add_seconds(self, clients: np.ndarray, seconds: np.ndarray) -> None:
        """Add the durations of an exchange, both (m,), of the clients whose updates are used."""
        at, here = self._places(clients)
        self.seconds[at] = np.nan_to_num(self.seconds[at]) + seconds[here]

    def learn(self, sampler: CohortSampler, state: Tree) -> Tree:
        """Return the sampler's state after the round."""
        return sampler.observe(state, self.cohort, self.metrics, self.seconds)

    def _places(self, clients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the places in the cohort of the clients that are in it, and whether each client is, (m,)."""
        here = np.isin(clients, self.cohort)
        return np.searchsorted(self.cohort, clients[here]), here
