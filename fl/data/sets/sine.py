"""Sine waves, a different one for each client.    y = A sin(x + phi),   A ~ U(0.1, 5),  phi ~ U(0, pi),  x ~ U(-5, 5)

Finn, Abbeel, Levine 2017, arXiv:1703.03400, section 5.1. Use `task: regression`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fl.checks import at_least
from fl.data.dataset import Dataset, Loader
from fl.registry import register
from fl.tensors import random

AMPLITUDES, WIDTH = (0.1, 5.0), 5.0


def waves(clients: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return (amplitudes, phases), each (clients,). They depend on (seed, client) only."""
    ids = np.arange(clients)
    low, high = AMPLITUDES
    return low + (high - low) * random.uniform(seed, "amplitude", ids), np.pi * random.uniform(seed, "phase", ids)


@register("data", "sine")
@dataclass(frozen=True, kw_only=True)
class Sine(Loader):
    """Points on sine waves, without noise, with a different wave for each client.

    Args:
        clients: Number of clients; at least 1.
        samples: Number of points per client; at least 1.
        seed: Seed of waves and points.
    """

    clients: int = 1000
    samples: int = 64
    seed: int = 0

    def load(self) -> Dataset:
        at_least(1, clients=self.clients, samples=self.samples)
        amplitudes, phases = waves(self.clients, self.seed)
        address = (self.seed, "sine", np.arange(self.clients)[:, None], np.arange(self.samples))
        x = WIDTH * (2 * random.uniform(*address) - 1)
        y = amplitudes[:, None] * np.sin(x + phases[:, None])
        owners = np.repeat(np.arange(self.clients), self.samples)
        return Dataset({"x": x.reshape(-1, 1), "y": y.reshape(-1, 1)}, clients=owners)
