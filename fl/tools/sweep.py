"""Sweeps: variants of one configuration, each tuned on one seed and run on several, what is there already left alone.

    config: digits.yaml                          # beside the sweep's own file
    seeds: 5                                     # or a list
    seeded: [partition.seed, shift.seed]         # what takes the seed's number besides `seed`
    tune: {client.lr: [0.03, 0.1, 0.3]}          # per variant, on the first seed, by the metric `by`
    by: val/accuracy
    metrics: [clients/accuracy_weighted]         # what the table shows
    variants:
      FedAvg: {}
      SCAFFOLD: {strategy: scaffold}             # overrides; config, tune or by of its own replaces the sweep's
      Head: {model.init: "{out}/FedAvg/s{seed}"} # what refers to {out} is run after the rest

OUT/VARIANT/s0, s1, ... are the run directories; of a variant that is tuned OUT/VARIANT,lr=0.1/s0, with what it was tried with (the
last part of the keys, where these tell them apart),
and the chosen one has the other seeds too. OUT/chosen.json says which that is.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

from fl.config.config import resolve
from fl.config.reading import read
from fl.config.references import anchor
from fl.config.yaml import parse
from fl.errors import ConfigError
from fl.execution.workers.ray_pool import keep_workers
from fl.report.compare import Variant
from fl.storage.run import read_metrics
from fl.tasks.task import minimised

Overrides = Mapping[str, Any]
FAILED = "failed.txt"  # in the directory of a candidate that did: what it said
_VARIANT_KEYS = ("config", "tune", "by")


@dataclass(frozen=True)
class Sweep:
    """A sweep as its file says it; `folder` is where the file lies."""

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
        for name in raw["variants"]:
            if not re.fullmatch(r"[^/,]+", str(name)):
                raise ConfigError("variants", f"{name!r} names folders: no slashes and commas, please")
        anchor(raw["variants"], path.parent)
        return Sweep(path.parent, **raw)

    @property
    def numbers(self) -> list[int]:
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)

    def config_of(self, variant: str) -> Path:
        return self.folder / (self.variants[variant] or {}).get("config", self.config)

    def overrides(self, variant: str, seed: int, tuned: Overrides, out: Path) -> dict[str, Any]:
        own = {k: v for k, v in (self.variants[variant] or {}).items() if k not in _VARIANT_KEYS}
        own = {k: _filled(v, out, seed) for k, v in own.items()}
        return {**own, "seed": seed, **{key: seed for key in self.seeded}, **tuned}

    def candidates(self, variant: str) -> list[dict[str, Any]]:
        """The settings to choose from; one, if there is nothing to tune."""
        grid = (self.variants[variant] or {}).get("tune", self.tune)
        return [dict(zip(grid, values)) for values in itertools.product(*grid.values())]

    def run(
        self, out: Path, only: Sequence[str] = (), jobs: int = 1, say: Callable[[str], None] = print
    ) -> list[Variant]:
        """Run what is missing, and read the rest; every configuration is checked before the first run."""
        for name in only:
            if name not in self.variants:
                raise ConfigError("only", f"{name!r} is not one of {list(self.variants)}")
        names = list(only or self.variants)
        for name in names:
            for tried in self.candidates(name):
                resolve(read(self.config_of(name), self.overrides(name, self.numbers[0], tried, out)))
        later = [name for name in names if "{out}" in str(self.variants[name])]
        found: dict[str, Variant] = {}
        for wave in ([name for name in names if name not in later], later):
            found |= {variant.name: variant for variant in self._wave(wave, out, jobs, say)}
        return [found[name] for name in names]

    def _wave(self, names: Sequence[str], out: Path, jobs: int, say: Callable[[str], None]) -> list[Variant]:
        """Tune and run variants that do not need each other."""
        tuned = [name for name in names if len(self.candidates(name)) > 1]
        first = self.numbers[0]
        trials = [self._run_of(out, name, first, tried) for name in tuned for tried in self.candidates(name)]
        self._all([replace(trial, may_fail=True) for trial in trials], jobs, say)
        chosen = {name: self._best(out, name) for name in names}
        if tuned:
            record = out / "chosen.json"
            known = json.loads(record.read_text()) if record.is_file() else {}
            record.write_text(json.dumps({**known, **chosen}, indent=2) + "\n")
        runs = {name: [self._run_of(out, name, seed, chosen[name]) for seed in self.numbers] for name in names}
        self._all([run for of_variant in runs.values() for run in of_variant], jobs, say)
        return [Variant.read(name, [run.out for run in of_variant]) for name, of_variant in runs.items()]

    def _run_of(self, out: Path, name: str, seed: int, tuned: Overrides) -> _Run:
        last = [key.rpartition(".")[2] for key in tuned]
        keys = [key if last.count(short) > 1 else short for key, short in zip(tuned, last)]
        label = [name] + [f"{k}={v}" for k, v in zip(keys, tuned.values()) if len(self.candidates(name)) > 1]
        return _Run(self.config_of(name), out / ",".join(label) / f"s{seed}", self.overrides(name, seed, tuned, out))

    def _best(self, out: Path, name: str) -> dict[str, Any]:
        """The candidate whose metric is best at the end of its run; of equals the first."""
        candidates = self.candidates(name)
        if len(candidates) == 1:
            return candidates[0]
        by = (self.variants[name] or {}).get("by", self.by)
        sign = -1 if minimised(by) else 1
        scores = []
        for tried in candidates:
            trial = self._run_of(out, name, self.numbers[0], tried).out
            measured = [row[by] for row in read_metrics(trial) if by in row]
            if (trial / FAILED).exists():
                measured = [None]
            if not measured:
                raise ConfigError("by", f"{by!r} was not measured by {name}; splits.val and evaluation say what is")
            scores.append(float("-inf") if measured[-1] is None else sign * measured[-1])
        return candidates[scores.index(max(scores))]

    def _all(self, runs: Sequence[_Run], jobs: int, say: Callable[[str], None]) -> None:
        missing = [run for run in runs if not any((run.out / file).is_file() for file in ("model.safetensors", FAILED))]
        if jobs == 1:
            with keep_workers():
                for run in missing:
                    say(run())
        elif missing:
            with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _keep) as pool:
                for line in pool.map(_Run.__call__, missing):
                    say(line)


def _keep() -> None:
    """The runs of this process share their workers, until it ends."""
    keeping = keep_workers()
    keeping.__enter__()
    Finalize(None, keeping.__exit__, (None, None, None), exitpriority=0)


@dataclass(frozen=True)
class _Run:
    config: Path
    out: Path
    overrides: Overrides
    may_fail: bool = False  # a candidate whose training diverges is one that is not chosen

    def __call__(self) -> str:
        """Run it; if it was killed, go on with it."""
        from fl.errors import ClientError
        from fl.simulation.run import resume, run

        begun = (self.out / "checkpoints" / "last.json").is_file()
        try:
            result = resume(self.out) if begun else run(self.config, out=self.out, **self.overrides)
        except ClientError as error:
            if not self.may_fail:
                raise
            (self.out / FAILED).write_text(f"{error}\n")
            return f"{self.out}: failed, {str(error).partition(chr(10))[0]}"
        return f"{self.out}: {result.reason}"


def _filled(value: Any, out: Path, seed: int) -> Any:
    """Strings with {out} and {seed} put in."""
    if isinstance(value, str):
        return value.replace("{out}", str(out)).replace("{seed}", str(seed))
    if isinstance(value, Mapping):
        return {k: _filled(v, out, seed) for k, v in value.items()}
    return [_filled(v, out, seed) for v in value] if isinstance(value, list) else value
