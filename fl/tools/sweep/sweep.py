"""A sweep: variants of one configuration, each tuned on one seed and run on several. Finished runs are reused.

    config: digits.yaml                          # relative to the sweep's file
    seeds: 5                                     # number of seeds, or a list
    seeded: [partition.seed, shift.seed]         # keys that take the seed's number, besides `seed`
    tune: {client.lr: [0.03, 0.1, 0.3]}          # settings to choose from, on the first seed, by the metric `by`
    by: val/accuracy
    metrics: [clients/accuracy_weighted]         # columns of the table
    variants:
      FedAvg: {}
      SCAFFOLD: {strategy: scaffold}             # overrides; its own config, tune or by replaces the sweep's
      Head: {model.init: "{out}/FedAvg/s{seed}"} # variants that mention {out} run after the others

docs/sweeps.md describes each key. The folder that a sweep writes is described in fl/report/sweep_folder.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fl.config.config import resolve
from fl.config.reading import read
from fl.config.space import Space
from fl.errors import ConfigError, did_you_mean
from fl.report.sweep_folder import CHOSEN, folder_of, update_record
from fl.report.variants import Variant
from fl.storage.run import read_metrics
from fl.tools.sweep.progress import Progress, Say
from fl.tools.sweep.runs import Overrides, SweepRun
from fl.tools.sweep.search import Search, Setting
from fl.tools.sweep.tuning import Tuning
from fl.tools.sweep.workers import Control, Uncontrolled, execute
from fl.tracking.callback import Row

OWN_KEYS = ("config", "tune", "by")  # keys of a variant that are no overrides


@dataclass(frozen=True)
class Sweep:
    """A sweep, from a file or from the arguments of a command (fl/tools/sweep/reading.py).

    Args:
        config: path of the configuration file.
        variants: name -> overrides, and its own `config`, `tune` or `by`.
        seeds: the seeds; the first one tunes.
        seeded: keys that take the seed's number, besides `seed`.
        tune: key -> values or a range to choose from.
        by: metric that chooses, at the end of a run.
        metrics: columns of the table; empty for the default metric.
        search: which settings are tried.
    """

    config: Path
    variants: Mapping[str, Overrides]
    seeds: Sequence[int] = (0,)
    seeded: Sequence[str] = ()
    tune: Space = field(default_factory=dict)
    by: str = "val/accuracy"
    metrics: Sequence[str] = ()
    search: Search = field(default_factory=Search)

    def config_of(self, variant: str) -> Path:
        """The configuration file of a variant."""
        return Path(self.variants[variant].get("config", self.config))

    def space_of(self, variant: str) -> Space:
        """What is searched for a variant; {} without anything to tune."""
        space: Space = self.variants[variant].get("tune", self.tune)
        return space

    def by_of(self, variant: str) -> str:
        """The metric that chooses a variant's setting."""
        return str(self.variants[variant].get("by", self.by))

    def overrides(self, variant: str, seed: int, setting: Overrides, out: Path) -> dict[str, Any]:
        """Overrides of one run: the variant's own, the seed, and the tuned `setting`."""
        own = {k: _fill_in(v, out, seed) for k, v in self.variants[variant].items() if k not in OWN_KEYS}
        return {**own, "seed": seed, **{key: seed for key in self.seeded}, **setting}

    def settings(self, variant: str) -> list[Setting]:
        """Settings to try, where the search knows them in advance, else those with which it is checked."""
        space = self.space_of(variant)
        known = self.search.settings(space)
        return self.search.corners(space) if known is None else known

    def is_tuned(self, variant: str) -> bool:
        """Whether a variant has several settings to choose from."""
        return self._number(variant) > 1

    def _number(self, variant: str) -> int:
        """Number of settings to try. Each run asks for it, and a search draws all settings to count them."""
        if variant not in self._counted:
            self._counted[variant] = self.search.number(self.space_of(variant))
        return self._counted[variant]

    @functools.cached_property
    def _counted(self) -> dict[str, int]:
        """What `_number` has returned, by variant."""
        return {}

    def run(
        self,
        out: Path,
        only: Sequence[str] = (),
        jobs: int = 1,
        say: Say = print,
        control: Control = Uncontrolled(),
        progress: bool | None = None,
    ) -> list[Variant]:
        """Run what is missing, and read all runs. Every configuration is checked before the first run.

        Args:
            out: folder of the run directories.
            only: variants to run; empty for all.
            jobs: number of runs at a time; more than 1: each in its own process.
            say: prints a line after each run.
            control: says whether a signal asks to stop.
            progress: show the progress of each run, see `fl.run`; not with several jobs.

        Raises:
            ConfigError: something is wrong with the sweep or one of its configurations.
            KeyboardInterrupt: a signal asked to stop. The same call goes on.
        """
        for name in only:
            if name not in self.variants:
                known = list(self.variants)
                raise ConfigError("only", f"{name!r} is not one of {known}.{did_you_mean(name, known)}")
        names = list(only or self.variants)
        self._check(out, names)
        counted = Progress(say, sum(map(self._number_of_runs, names)), jobs)
        later = [name for name in names if "{out}" in str(self.variants[name])]
        found: dict[str, Variant] = {}
        for group in ([name for name in names if name not in later], later):
            for variant in self._run_group(group, out, lambda queue: execute(queue, jobs, control, progress), counted):
                found[variant.name] = variant
        return [found[name] for name in names]

    def _check(self, out: Path, names: Sequence[str]) -> None:
        """Check the search, the configurations, and runs that are there already."""
        for name in names:
            self.search.check(self.space_of(name))
            for setting in self.settings(name) + self.search.corners(self.space_of(name)):
                first, *others = (self._plan(out, name, seed, setting) for seed in self.seeds)
                first.check()
                for run in others:
                    if (run.out / "config.yaml").is_file():
                        run.check()
        for name in names:
            self._check_metric(out, name)

    def _check_metric(self, out: Path, name: str) -> None:
        """Set up a variant's first trial to check the metric `by`, before any trial starts.

        A variant that mentions {out} cannot be set up before the others have run.
        """
        from fl.simulation.build import set_up_run
        from fl.simulation.stopping import check_metric_names

        if self.is_tuned(name) and "{out}" not in str(self.variants[name]):
            trial = self._plan(out, name, self.seeds[0], self.settings(name)[0])
            if not (trial.out / "metrics.jsonl").is_file():
                check_metric_names(set_up_run(resolve(read(trial.config, trial.overrides))), [("by", self.by_of(name))])

    def _number_of_runs(self, name: str) -> int:
        return max(self._number(name), 1) + len(self.seeds) - 1

    def _run_group(
        self, names: Sequence[str], out: Path, start: Callable[[_Queue], None], progress: Progress
    ) -> list[Variant]:
        """Tune and run variants that do not depend on each other."""
        tunings = [self._tuning(out, name) for name in names if self.is_tuned(name)]
        trials = _Queue(((tuning, run) for tuning in tunings for run in iter(tuning.next, None)), progress)
        start(trials)
        chosen = {name: self.settings(name)[0] for name in names if not self.is_tuned(name)}
        chosen |= {tuning.variant: tuning.best() for tuning in tunings}
        chosen = {name: chosen[name] for name in names}
        if tunings:
            update_record(out / CHOSEN, chosen)
        runs = {name: [self._plan(out, name, seed, chosen[name]) for seed in self.seeds] for name in names}
        tuned = {tuning.variant for tuning in tunings}
        start(_Queue(((None, run) for name in names for run in runs[name][name in tuned :]), progress))
        return [Variant.read(name, [run.out for run in runs[name]]) for name in names]

    def _tuning(self, out: Path, name: str) -> Tuning:
        seed = self.seeds[0]

        def plan(setting: Setting) -> SweepRun:
            return replace(self._plan(out, name, seed, setting), trial=True)

        config = resolve(read(self.config_of(name), self.overrides(name, seed, self.settings(name)[0], out)))
        space, by = self.space_of(name), self.by_of(name)
        return Tuning(name, space, self.search, by, config.rounds, out, plan, seed)

    def _plan(self, out: Path, name: str, seed: int, setting: Overrides) -> SweepRun:
        folder = folder_of(name, setting if self.is_tuned(name) else {})
        return SweepRun(self.config_of(name), out / folder / f"s{seed}", self.overrides(name, seed, setting, out))


class _Queue:
    """Runs to execute: finished ones are counted and left out. A trial comes with the tuning that asked for it."""

    def __init__(self, runs: Iterator[tuple[Tuning | None, SweepRun]], progress: Progress):
        self._runs, self._progress = runs, progress
        self._tunings: dict[Path, Tuning] = {}

    def next(self) -> SweepRun | None:
        """The next run that is not finished."""
        for tuning, run in self._runs:
            if tuning is not None:
                self._tunings[run.out] = tuning
                if (run.out / "metrics.jsonl").is_file():
                    tuning.replay(run, read_metrics(run.out))
            if not run.is_finished:
                self._progress.begin()
                return run
            self._progress.reused()
            if tuning is not None:
                tuning.ended(run)
        return None

    def goes_on(self, run: SweepRun, row: Row) -> bool:
        """Whether a run goes on after a round."""
        tuning = self._tunings.get(run.out)
        return tuning is None or tuning.goes_on(run, row)

    def ended(self, run: SweepRun, reason: str) -> None:
        """Count a run that has ended."""
        tuning = self._tunings.get(run.out)
        if tuning is not None:
            tuning.ended(run)
            score = run.score(tuning.by)
            reason += "" if score is None else f", {tuning.by} {score:.4g}"
        self._progress.finished(f"{run.name}: {reason}")


def _fill_in(value: Any, out: Path, seed: int) -> Any:
    """Replace {out} and {seed} in all strings of a value."""
    if isinstance(value, str):
        return value.replace("{out}", str(out)).replace("{seed}", str(seed))
    if isinstance(value, Mapping):
        return {k: _fill_in(v, out, seed) for k, v in value.items()}
    return [_fill_in(v, out, seed) for v in value] if isinstance(value, list) else value
