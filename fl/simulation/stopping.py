"""When a run ends early, and which of its rounds is best so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, get_args

from fl.config.config import Config
from fl.config.sections import Stage
from fl.errors import ConfigError, did_you_mean
from fl.method.strategy import Strategy
from fl.simulation.evaluation import SPLIT_PREFIXES, metric_names
from fl.simulation.setup import RunSetup
from fl.simulation.totals import Row
from fl.tasks.task import SELECT, minimised

BUDGETS = ("epsilon", "virtual_epsilon")  # in `stop.target` of a private run: limits that no round exceeds
LATER = ("task*", "stream/*")  # metrics that a stream has in later rounds only


def names_in(select: str | None, target: Mapping[str, float]) -> list[tuple[str, str]]:
    """(key of the configuration, metric) for each metric that a configuration names."""
    selecting = [("evaluation.select", select)] if select else []
    return selecting + [("stop.target", name) for name in target]


def unknown_metric(key: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for a metric that a run does not have."""
    known = sorted(known)
    return ConfigError(key, f"{name!r} is not a metric of this run, which has {known}.{did_you_mean(name, known)}")


def check_metric_names(setup: RunSetup, names: Iterable[tuple[str, str]]) -> None:
    """Check metrics of an evaluation, such as eval/*, val/* and clients/*.

    Other names depend on the strategy and the client; the first evaluation tells.

    Args:
        setup: the run.
        names: (key of the configuration, metric) pairs.

    Raises:
        ConfigError: a metric is not measured in this run.
    """
    if type(setup.config.strategy).evaluation is not Strategy.evaluation:
        return
    known, own = metric_names(setup), {"eval", *SPLIT_PREFIXES.values(), *get_args(Stage)}
    for key, name in names:
        if name.partition("/")[0] in own and name not in known:
            raise unknown_metric(key, name, {*known, "train/loss"})


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
        self.later = (*LATER, *config.strategy.later_metrics)
        self.checked = False  # whether all names have been seen in a row of metrics

    def record(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"best": self.best, "waited": self.waited, "reason": self.reason}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Take over a `record`."""
        self.best, self.waited, self.reason = record["best"], record["waited"], record["reason"]

    def check(
        self,
        row: Row,
        evaluated: bool,
        simulated_seconds: float,
        next_epsilon: Callable[[], float] | None = None,
    ) -> bool:
        """Look at the metrics of a round, set `reason` if the run ends here, and return whether the round is the best.

        Args:
            row: the round's metrics.
            evaluated: whether the round was evaluated; only then it can be the best.
            simulated_seconds: virtual time at the end of the round.
            next_epsilon: returns the largest epsilon after one more round; None for a run without privacy.
        """
        if evaluated and not self.checked:
            self._check_names(row)
        select = self.select or next((metric for metric in SELECT if metric in row), None)
        is_best = evaluated and select in row and not math.isnan(row[select]) and self._improves(select, row[select])
        stop = self.stop
        target = {m: v for m, v in stop.target.items() if next_epsilon is None or m not in BUDGETS}
        reached = [m for m, v in target.items() if m in row and (row[m] <= v if minimised(m) else row[m] >= v)]
        if target and len(reached) == len(target):
            self.reason = f"target reached: {target}"
        elif next_epsilon is not None and (exceeded := self.exceeded(next_epsilon())):
            self.reason = exceeded
        elif stop.patience is not None and self.waited >= stop.patience:
            self.reason = f"no better {select} in {stop.patience} evaluations"
        elif stop.simulated_seconds is not None and simulated_seconds >= stop.simulated_seconds:
            self.reason = f"{simulated_seconds:.0f} simulated seconds"
        return is_best

    def exceeded(self, epsilon: float) -> str:
        """Return why no round may follow that has this epsilon; "" if one may."""
        limit = min((value for name, value in self.stop.target.items() if name in BUDGETS), default=math.inf)
        return f"the next round has epsilon {epsilon:.4g}, and stop.target allows {limit:g}" if epsilon > limit else ""

    def check_first_round(self, epsilon: float) -> None:
        """Check that a private run may do a round, which has this epsilon.

        Raises:
            ConfigError: it may not.
        """
        if found := self.exceeded(epsilon):
            raise ConfigError("stop.target", f"{found}; allow more, or set a larger privacy.noise_multiplier")

    def _check_names(self, row: Row) -> None:
        """Raise a `ConfigError` if a metric is missing in the first evaluated round in which clients trained.

        A strategy names the metrics that come later in `later_metrics`.
        """
        if not any(name.startswith("train/") for name in row):  # nobody answered in this round
            return
        self.checked = True
        for key, name in names_in(self.select, self.stop.target):
            if name not in row and not any(fnmatchcase(name, pattern) for pattern in self.later):
                raise unknown_metric(key, name, [known for known, value in row.items() if isinstance(value, float)])

    def _improves(self, metric: str, value: float) -> bool:
        sign = -1 if minimised(metric) else 1
        if self.best is None or sign * value > sign * self.best:
            self.best, self.waited = value, 0
            return True
        self.waited += 1
        return False
