"""What a cohort does in virtual time, in one exchange of a synchronous server."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from fl.system.rounds import RoundTiming, Synchronous
from fl.system.simulated_system import LEGS, SimulatedSystem


@dataclass(frozen=True)
class RoundTrip:
    """Columns are (n,), as `cohort` is ordered: full local `steps`, `samples` of all gradients, `extra` of them outside
    the steps, bytes `down` and, once they are known (`uploading`), `up`."""

    schedule: Synchronous
    world: SimulatedSystem
    start: float
    dispatch: int
    cohort: np.ndarray
    steps: np.ndarray
    samples: np.ndarray
    down: np.ndarray
    flops_per_sample: float = math.nan
    extra: np.ndarray | int = 0
    round: RoundTiming | None = None

    def uploading(self, up: np.ndarray) -> RoundTrip:
        """With what follows from the bytes (n,) that each sends."""
        times = self.world.times(self.cohort, self.samples, self.down, up, self.dispatch, self.flops_per_sample)
        played = self.schedule.round(
            self.world,
            self.cohort,
            times,
            start=self.start,
            dispatch=self.dispatch,
            steps=self.steps,
            extra=self.extra / np.maximum(self.samples, 1),
        )
        return replace(self, round=played)

    def takes(self) -> tuple[np.ndarray, np.ndarray | None]:
        """(who trains, the most local steps of each if some have no time for all)."""
        included = self.round.included
        steps = self.round.steps[included]
        return self.cohort[included], steps if (steps < self.steps[included]).any() else None

    def metrics(self) -> dict[str, float]:
        """The round's, with the energy where watts are known."""
        joules = self._joules()
        energy = {} if np.isnan(joules).any() else {"simulated_joules": float(joules.sum())}
        return self.round.metrics() | energy

    def columns(self) -> dict[str, np.ndarray]:
        """What the table of clients keeps: seconds of the legs, fate (see FATES), local steps, joules."""
        numbers = {f"{leg}_seconds": getattr(self.round.times, leg) for leg in LEGS}
        numbers |= {"fate": self.round.fate, "local_steps": self.round.steps, "joules": self._joules()}
        return {name: np.asarray(column, float) for name, column in numbers.items()}

    def _joules(self) -> np.ndarray:
        return self.world.joules(self.cohort, self.round.times, self.round.spent)
