"""A passive party that fits perceptrons to its own columns: the base of the clients of FedOnce and GAL."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl import ClientAlgorithm, PerceptronFit


@dataclass(frozen=True, kw_only=True)
class FittingParty(PerceptronFit, ClientAlgorithm):
    """Fits of perceptrons, booked in virtual time as their passes over the training rows."""

    def workload(
        self, sizes: np.ndarray, round_: int, rounds: int, name: str = "train"
    ) -> tuple[np.ndarray, np.ndarray]:
        return -(-sizes // self.batch) * self.epochs, sizes * self.epochs
