"""One variant's trials: which setting comes next, which trial is stopped early, and which setting is chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from fl.config.space import Space, to_plain
from fl.errors import ConfigError
from fl.report.sweep_folder import TRIALS, read_record, update_record, was_stopped
from fl.storage.run import rounds_done
from fl.tasks.task import minimised
from fl.tools.sweep.runs import SweepRun
from fl.tools.sweep.search import Asha, Search, Setting
from fl.tracking.callback import Row


class Tuning:
    """The trials of one variant.

    Args:
        variant: its name.
        space: what is searched.
        search: how.
        by: metric that chooses, at the end of a run.
        rounds: number of rounds of a run.
        out: folder of the sweep.
        plan: the run of a setting.
        seed: seed of the trials.

    Attributes:
        number: number of trials, if none is left out.
    """

    def __init__(
        self,
        variant: str,
        space: Space,
        search: Search,
        by: str,
        rounds: int,
        out: Path,
        plan: Callable[[Setting], SweepRun],
        seed: int,
    ):
        self.variant, self.space, self.by = variant, space, by
        self._search, self._out, self._plan, self._seed = search, out, plan, seed
        self._mode = "min" if minimised(by) else "max"
        self._asha = Asha(by, self._mode, rounds) if search.kind_for(space) == "asha" else None
        known = search.settings(space)
        self.number = search.number(space)
        self._trials: list[Setting] = list(known or self._recorded())
        self._given = 0  # trials that were handed out
        self._scores: dict[int, float | None] = {}  # of finished trials, by their number
        self._numbers: dict[Path, int] = {}

    def next(self) -> SweepRun | None:
        """The next trial, finished or not; None after the last."""
        if self._given >= self.number:
            return None
        i = self._given
        if i == len(self._trials):
            done = [(self._trials[k], self._scores[k]) for k in sorted(self._scores)]
            self._trials.append(self._search.propose(self.space, self.by, self._mode, done, i))
        self._given += 1
        self._record()
        run = self._plan(self._trials[i])
        self._numbers[run.out] = i
        return run

    def goes_on(self, run: SweepRun, row: Row) -> bool:
        """Whether a trial goes on after a round."""
        return self._asha is None or self._asha.goes_on(str(run.out), rounds_done(row), row)

    def replay(self, run: SweepRun, rows: Sequence[Row]) -> None:
        """Learn the rounds of a trial that an earlier command has executed."""
        for row in rows if self._asha is not None else ():
            if "stage" not in row and not self.goes_on(run, row):
                break

    def ended(self, run: SweepRun) -> None:
        """Learn the score of a trial that has ended.

        Raises:
            ConfigError: it did not measure the metric that chooses.
        """
        if not was_stopped(run.out):
            self._scores[self._numbers[run.out]] = run.score(self.by)

    def best(self) -> Setting:
        """The setting of the best complete trial; the first of equally good ones.

        Raises:
            ConfigError: all trials failed.
        """
        sign = -1 if self._mode == "min" else 1
        scored = {i: score for i, score in sorted(self._scores.items()) if score is not None and math.isfinite(score)}
        if not scored:
            raise ConfigError(
                "tune", f"the training of {self.variant} failed with every setting; search smaller values, or others"
            )
        return self._trials[max(scored, key=lambda i: sign * scored[i])]

    def _recorded(self) -> list[Setting]:
        """Trials of an earlier command that searched the same space."""
        known = read_record(self._out / TRIALS).get(self.variant, {})
        return list(known.get("trials", [])) if known.get("space") == to_plain(self.space) else []

    def _record(self) -> None:
        entry = {"by": self.by, "seed": self._seed, "space": to_plain(self.space), "trials": self._trials}
        update_record(self._out / TRIALS, {self.variant: entry})
