"""Sine waves: every client has one of its own.    y = A sin(x + phi),   A ~ U(0.1, 5),  phi ~ U(0, pi),  x ~ U(-5, 5)

Finn, Abbeel, Levine 2017, arXiv:1703.03400, section 5.1. A task of regression: `task: regression`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.data.dataset import Dataset
from fl.registry import register
from fl.tensors import random

AMPLITUDES, WIDTH = (0.1, 5.0), 5.0


def waves(clients: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(amplitudes, phases), each (clients,); a client's own depend on (seed, client) alone."""
    ids = np.arange(clients)
    low, high = AMPLITUDES
    return low + (high - low) * random.uniform(seed, "amplitude", ids), np.pi * random.uniform(seed, "phase", ids)


@register("data", "sine")
@dataclass(frozen=True, kw_only=True)
class Sine:
    """`samples` points, without noise, of a sine wave of its own for each of `clients`."""

    clients: int = 1000
    samples: int = 64
    seed: int = 0

    def load(self) -> Dataset:
        for name in ("clients", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not at least 1")
        amplitudes, phases = waves(self.clients, self.seed)
        address = (self.seed, "sine", np.arange(self.clients)[:, None], np.arange(self.samples))
        x = WIDTH * (2 * random.uniform(*address) - 1)
        y = amplitudes[:, None] * np.sin(x + phases[:, None])
        owners = np.repeat(np.arange(self.clients), self.samples)
        return Dataset({"x": x.reshape(-1, 1), "y": y.reshape(-1, 1)}, clients=owners)
