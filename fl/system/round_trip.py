"""The round trip of a cohort in virtual time: one exchange of a synchronous server."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from fl.system.simulated_system import LEGS, SimulatedSystem
from fl.system.synchronous import RoundTiming, Synchronous


@dataclass(frozen=True)
class RoundTrip:
    """A round trip. Arrays (n,) follow the order of `cohort`.

    steps      local steps of full work          samples    samples of all gradients
    down       bytes received                    extra      samples of gradients outside the steps
    round      timing; known once `uploading` has set the bytes sent
    """

    schedule: Synchronous
    world: SimulatedSystem
    start: float
    dispatch: int
    cohort: np.ndarray
    steps: np.ndarray
    samples: np.ndarray
    down: np.ndarray
    flops_per_sample: float | np.ndarray = math.nan
    extra: np.ndarray | int = 0
    round: RoundTiming | None = None

    def uploading(self, up: np.ndarray) -> RoundTrip:
        """Return the round trip with the timing that follows from `up` (n,), the bytes that each client sends."""
        times = self.world.times(self.cohort, self.samples, self.down, up, self.dispatch, self.flops_per_sample)
        timing = self.schedule.round(
            self.world,
            self.cohort,
            times,
            start=self.start,
            dispatch=self.dispatch,
            steps=self.steps,
            extra=self.extra / np.maximum(self.samples, 1),
        )
        return replace(self, round=timing)

    @property
    def timing(self) -> RoundTiming:
        """The timing of the round; `uploading` must have set it."""
        assert self.round is not None
        return self.round

    def takes(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Return (ids that train, their maximum number of local steps). The maximum is None if all do full work."""
        included = self.timing.included
        steps = self.timing.steps[included]
        return self.cohort[included], steps if (steps < self.steps[included]).any() else None

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the round, with the energy in joules if the power of all devices is known."""
        joules = self._joules()
        energy = {} if np.isnan(joules).any() else {"simulated_joules": float(joules.sum())}
        return self.timing.metrics() | energy

    def columns(self) -> dict[str, np.ndarray]:
        """Return columns for the table of clients: seconds of the legs, fate (in OUTCOMES), local steps, joules."""
        numbers = {f"{leg}_seconds": getattr(self.timing.times, leg) for leg in LEGS}
        numbers |= {"fate": self.timing.outcome, "local_steps": self.timing.steps, "joules": self._joules()}
        return {name: np.asarray(column, float) for name, column in numbers.items()}

    def _joules(self) -> np.ndarray:
        return self.world.joules(self.cohort, self.timing.times, self.timing.spent)
