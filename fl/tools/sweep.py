"""Sweeps: variants of one configuration, each tuned on one seed and run on several. Finished runs are reused.

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

OUT/VARIANT/s0, s1, ... are the run directories. A tuned variant has OUT/VARIANT,lr=0.1/s0 for each setting that was
tried (the last part of a key, where that is unambiguous), and all seeds of the chosen setting. OUT/chosen.json holds
the chosen settings.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fl.config.config import resolve
from fl.config.reading import read
from fl.config.references import anchor
from fl.config.yaml import parse
from fl.errors import ConfigError
from fl.execution.workers.ray_pool import keep_workers
from fl.report.variants import Variant
from fl.storage import files
from fl.storage.place import LONGEST, folder_name
from fl.storage.run import committed, read_metrics
from fl.tasks.task import minimised

Overrides = Mapping[str, Any]
Say = Callable[[str], None]
FAILED = "failed.txt"  # holds the error message, in the directory of a trial that failed
MOST_SEEDS = 10_000
_VARIANT_KEYS = ("config", "tune", "by")


@dataclass(frozen=True)
class Sweep:
    """A sweep file.

    Args:
        folder: folder of the file.
        config: configuration file, relative to `folder`.
        variants: name -> overrides.
        seeds: number of seeds (0, 1, ...), or the seeds themselves.
        seeded: keys that take the seed's number, besides `seed`.
        tune: key -> values to choose from; all combinations are tried.
        by: metric that chooses, at the end of a run.
        metrics: columns of the table; empty for the default metric.
    """

    folder: Path
    config: str
    variants: Mapping[str, Overrides]
    seeds: Sequence[int] | int = 1
    seeded: Sequence[str] = ()
    tune: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    by: str = "val/accuracy"
    metrics: Sequence[str] = ()

    @staticmethod
    def load(path: Path) -> Sweep:
        """Read a sweep file; a mistake in it is a `ConfigError`."""
        if not path.is_file():
            raise ConfigError("", f"{path} does not exist")
        raw = parse(path.read_text())
        known = set(Sweep.__dataclass_fields__) - {"folder"}
        for key in raw:
            if key not in known:
                raise ConfigError(key, f"not a key of a sweep, which has {sorted(known)}")
        for key in ("config", "variants"):
            if key not in raw:
                raise ConfigError(key, "missing; a sweep needs a config and variants")
        _check_names(raw)
        anchor(raw["variants"], path.parent)
        return Sweep(path.parent, **raw)

    @property
    def seed_list(self) -> list[int]:
        """The seeds to run."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)

    def config_of(self, variant: str) -> Path:
        """The configuration file of a variant."""
        return self.folder / (self.variants[variant] or {}).get("config", self.config)

    def overrides(self, variant: str, seed: int, setting: Overrides, out: Path) -> dict[str, Any]:
        """Overrides of one run: the variant's own, the seed, and the tuned `setting`."""
        own = {k: v for k, v in (self.variants[variant] or {}).items() if k not in _VARIANT_KEYS}
        own = {k: _fill_in(v, out, seed) for k, v in own.items()}
        return {**own, "seed": seed, **{key: seed for key in self.seeded}, **setting}

    def settings(self, variant: str) -> list[dict[str, Any]]:
        """Settings to choose from, all combinations of `tune`; only {} without anything to tune."""
        grid = (self.variants[variant] or {}).get("tune", self.tune)
        return [dict(zip(grid, values)) for values in itertools.product(*grid.values())]

    def run(self, out: Path, only: Sequence[str] = (), jobs: int = 1, say: Say = print) -> list[Variant]:
        """Run what is missing, and read all runs. Every configuration is checked before the first run.

        Args:
            out: folder of the run directories.
            only: variants to run; empty for all.
            jobs: number of runs at a time, each in its own process.
            say: prints a line after each run.
        """
        for name in only:
            if name not in self.variants:
                raise ConfigError("only", f"{name!r} is not one of {list(self.variants)}")
        names = list(only or self.variants)
        for name in names:
            for setting in self.settings(name):
                resolve(read(self.config_of(name), self.overrides(name, self.seed_list[0], setting, out)))
        later = [name for name in names if "{out}" in str(self.variants[name])]
        found: dict[str, Variant] = {}
        for group in ([name for name in names if name not in later], later):
            found |= {variant.name: variant for variant in self._run_group(group, out, jobs, say)}
        return [found[name] for name in names]

    def _run_group(self, names: Sequence[str], out: Path, jobs: int, say: Say) -> list[Variant]:
        """Tune and run variants that do not depend on each other."""
        tuned = [name for name in names if len(self.settings(name)) > 1]
        first = self.seed_list[0]
        trials = [self._plan_run(out, name, first, setting) for name in tuned for setting in self.settings(name)]
        _run_missing([replace(trial, may_fail=True) for trial in trials], jobs, say)
        chosen = {name: self._best_setting(out, name) for name in names}
        if tuned:
            record = out / "chosen.json"
            known = json.loads(record.read_text()) if record.is_file() else {}
            files.write_file(record, json.dumps({**known, **chosen}, indent=2) + "\n")
        runs = {name: [self._plan_run(out, name, seed, chosen[name]) for seed in self.seed_list] for name in names}
        _run_missing([run for of_variant in runs.values() for run in of_variant], jobs, say)
        return [Variant.read(name, [run.out for run in of_variant]) for name, of_variant in runs.items()]

    def _plan_run(self, out: Path, name: str, seed: int, setting: Overrides) -> _Run:
        last = [key.rpartition(".")[2] for key in setting]
        keys = [key if last.count(short) > 1 else short for key, short in zip(setting, last)]
        label = [name] + [f"{k}={v}" for k, v in zip(keys, setting.values()) if len(self.settings(name)) > 1]
        folder = _as_folder(",".join(label))
        return _Run(self.config_of(name), out / folder / f"s{seed}", self.overrides(name, seed, setting, out))

    def _best_setting(self, out: Path, name: str) -> dict[str, Any]:
        """The setting whose metric is best at the end of its run; the first of equally good ones."""
        settings = self.settings(name)
        if len(settings) == 1:
            return settings[0]
        by = (self.variants[name] or {}).get("by", self.by)
        sign = -1 if minimised(by) else 1
        scores = []
        for setting in settings:
            trial = self._plan_run(out, name, self.seed_list[0], setting).out
            measured = [row[by] for row in read_metrics(trial) if by in row]
            if (trial / FAILED).exists():
                measured = [None]
            if not measured:
                raise ConfigError("by", f"{by!r} was not measured by {name}; splits.val and evaluation say what is")
            scores.append(float("-inf") if measured[-1] is None else sign * measured[-1])
        return settings[scores.index(max(scores))]


@dataclass(frozen=True)
class _Run:
    """One run of a sweep. `may_fail`: a trial whose training diverges is not chosen, and does not stop the sweep."""

    config: Path
    out: Path
    overrides: Overrides
    may_fail: bool = False

    @property
    def finished(self) -> bool:
        return any((self.out / file).is_file() for file in ("model.safetensors", FAILED))

    def execute(self) -> str:
        """Run it, or resume it if it was killed; returns a line for the screen."""
        from fl.errors import ClientError
        from fl.simulation.run import resume, run

        started = committed(self.out)
        try:
            result = resume(self.out) if started else run(self.config, out=self.out, **self.overrides)
        except ClientError as error:
            if not self.may_fail:
                raise
            files.write_file(self.out / FAILED, f"{error}\n")
            return f"{self.out}: failed, {str(error).partition(chr(10))[0]}"
        return f"{self.out}: {result.reason}"


def _run_missing(runs: Sequence[_Run], jobs: int, say: Say) -> None:
    """Execute the runs that are not finished, `jobs` at a time."""
    missing = [run for run in runs if not run.finished]
    if jobs == 1:
        with keep_workers():
            for run in missing:
                say(run.execute())
    elif missing:
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _keep_workers_of_process) as pool:
            for line in pool.map(_Run.execute, missing):
                say(line)


def _keep_workers_of_process() -> None:
    """Let all runs of this process share their workers, until the process ends."""
    keeping = keep_workers()
    keeping.__enter__()
    Finalize(None, keeping.__exit__, (None, None, None), exitpriority=0)


def _check_names(raw: Mapping[str, Any]) -> None:
    """Check what names folders: variants and seeds."""
    if not isinstance(raw["variants"], Mapping):
        raise ConfigError("variants", "not a mapping of names to overrides")
    for name in raw["variants"]:
        if "," in folder_name("variants", name):
            raise ConfigError("variants", f"{name!r} cannot hold commas; they separate tuned settings")
        if not isinstance(name, str):
            raise ConfigError("variants", f"{name!r} is not a text; put it in quotes")
    seeds = raw.get("seeds", 1)
    numbers = seeds if isinstance(seeds, list) else [seeds]
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in numbers) or seeds == 0:
        raise ConfigError("seeds", f"{seeds!r} is neither a number of seeds, 1 or more, nor a list of seeds, 0 or more")
    if not isinstance(seeds, list) and seeds > MOST_SEEDS:
        raise ConfigError("seeds", f"{seeds} is more than {MOST_SEEDS}")


def _as_folder(label: str) -> str:
    """The name of a variant with its settings as the name of one folder: slashes are written %2F, and the end of a
    long name is a digest.

    >>> _as_folder("FedAvg,init=runs/a")
    'FedAvg,init=runs%2Fa'
    """
    text = "".join(c if c.isprintable() and c not in "/%" else quote(c, safe="") for c in label)
    whole = text.encode()
    if len(whole) <= LONGEST:
        return text
    return whole[: LONGEST - 17].decode(errors="ignore") + "-" + hashlib.sha256(whole).hexdigest()[:16]


def _fill_in(value: Any, out: Path, seed: int) -> Any:
    """Replace {out} and {seed} in all strings of a value."""
    if isinstance(value, str):
        return value.replace("{out}", str(out)).replace("{seed}", str(seed))
    if isinstance(value, Mapping):
        return {k: _fill_in(v, out, seed) for k, v in value.items()}
    return [_fill_in(v, out, seed) for v in value] if isinstance(value, list) else value
