"""When a run ends early, and which of its rounds is best so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fl.config.config import Config
from fl.simulation.totals import Row
from fl.tasks.task import SELECT, minimised


class Stopping:
    """Follows the metric that selects the best round, the targets, and the patience.

    Attributes:
        best: the best value so far of the selecting metric, `None` before the first evaluation.
        waited: evaluations since then.
        reason: why the run ends, "" while it goes on.
    """

    def __init__(self, config: Config):
        self.select, self.stop = config.evaluation.select, config.stop
        self.best: float | None = None
        self.waited, self.reason = 0, ""

    def record(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"best": self.best, "waited": self.waited, "reason": self.reason}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Take over a `record`."""
        self.best, self.waited, self.reason = record["best"], record["waited"], record["reason"]

    def check(self, row: Row, evaluated: bool, simulated_seconds: float) -> bool:
        """Look at the metrics of a round, set `reason` if the run ends here, and return whether the round is the best.

        Args:
            row: the round's metrics.
            evaluated: whether the round was evaluated; only then it can be the best.
            simulated_seconds: virtual time at the end of the round.
        """
        select = self.select or next((metric for metric in SELECT if metric in row), None)
        is_best = evaluated and select in row and not math.isnan(row[select]) and self._improves(select, row[select])
        stop = self.stop
        reached = [m for m, v in stop.target.items() if m in row and (row[m] <= v if minimised(m) else row[m] >= v)]
        if stop.target and len(reached) == len(stop.target):
            self.reason = f"target reached: {stop.target}"
        elif stop.patience is not None and self.waited >= stop.patience:
            self.reason = f"no better {select} in {stop.patience} evaluations"
        elif stop.simulated_seconds is not None and simulated_seconds >= stop.simulated_seconds:
            self.reason = f"{simulated_seconds:.0f} simulated seconds"
        return is_best

    def _improves(self, metric: str, value: float) -> bool:
        sign = -1 if minimised(metric) else 1
        if self.best is None or sign * value > sign * self.best:
            self.best, self.waited = value, 0
            return True
        self.waited += 1
        return False
