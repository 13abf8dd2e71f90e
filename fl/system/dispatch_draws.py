"""Random draws of an asynchronous server, by dispatch number."""

from __future__ import annotations

import numpy as np

from fl.system.devices import lognormal_factors
from fl.system.simulated_system import LEGS, SimulatedSystem
from fl.tensors import random

BLOCK = 1 << 12  # dispatch numbers drawn at once
ATTEMPTS = 16  # random candidates tried before all idle clients are examined


class DispatchDraws:
    """Draws per dispatch number, made for `BLOCK` of them at once."""

    def __init__(self, system: SimulatedSystem):
        self.system, self.block = system, -1

    def starts(self, dispatch: int, attempt: int) -> float:
        """Return a number in [0, 1) that selects one of the idle clients."""
        self._draw(dispatch // BLOCK)
        return self.start_draws[attempt][dispatch % BLOCK]

    def round_trip(self, dispatch: int) -> tuple[float, ...]:
        """Return the share of the round trip before a drop-out (1: none), then the jitter factors of the legs."""
        self._draw(dispatch // BLOCK)
        return self.round_trips[dispatch % BLOCK]

    def _draw(self, block: int) -> None:
        if block == self.block:
            return
        system, self.block, dispatch = self.system, block, block * BLOCK + np.arange(BLOCK)
        attempts = 1 if system.presence.always else ATTEMPTS + 1
        self.start_draws = [random.uniform(system.seed, "start", dispatch, a).tolist() for a in range(attempts)]
        columns = [np.ones(BLOCK)]
        if system.dropout:
            drops = random.uniform(system.seed, "dropout", dispatch) < system.dropout
            columns[0] = np.where(drops, random.uniform(system.seed, "dropout", "share", dispatch), 1.0)
        if system.jitter:
            columns += [lognormal_factors(system.jitter, system.seed, "jitter", leg, dispatch) for leg in LEGS]
        self.round_trips = list(zip(*(column.tolist() for column in columns)))
