"""Sweeps: variants of one configuration, each tuned on one seed and run on several, what is there already left alone.

    config: digits.yaml                          # beside the sweep's own file
    seeds: 5                                     # or a list
    seeded: [partition.seed, shift.seed]         # what takes the seed's number besides `seed`
    tune: {client.lr: [0.03, 0.1, 0.3]}          # per variant, on the first seed, by the metric `by`
    by: val/accuracy
    metrics: [clients/accuracy_weighted]         # what the table shows
    variants:
      FedAvg: {}
      SCAFFOLD: {strategy: scaffold}             # overrides; a `tune` or `by` of its own replaces the sweep's

OUT/VARIANT/s0, s1, ... are the run directories; of a variant that is tuned OUT/VARIANT,lr=0.1/s0, with what it was tried with,
and the chosen one has the other seeds too. OUT/chosen.json says which that is.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fl.config import ConfigError, parse, read, resolve
from fl.report.compare import Variant
from fl.storage.run import read_metrics

Overrides = Mapping[str, Any]
_VARIANT_KEYS = ("tune", "by")


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
        return Sweep(path.parent, **raw)

    @property
    def numbers(self) -> list[int]:
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)

    def overrides(self, variant: str, seed: int, tuned: Overrides) -> dict[str, Any]:
        own = {k: v for k, v in (self.variants[variant] or {}).items() if k not in _VARIANT_KEYS}
        return {**own, "seed": seed, **{key: seed for key in self.seeded}, **tuned}

    def candidates(self, variant: str) -> list[dict[str, Any]]:
        """The settings to choose from; one, if there is nothing to tune."""
        grid = (self.variants[variant] or {}).get("tune", self.tune)
        return [dict(zip(grid, values)) for values in itertools.product(*grid.values())]

    def run(self, out: Path, only: Sequence[str] = (), jobs: int = 1, say: Callable[[str], None] = print) -> list[Variant]:
        """Run what is missing, and read the rest; every configuration is checked before the first run."""
        for name in only:
            if name not in self.variants:
                raise ConfigError("only", f"{name!r} is not one of {list(self.variants)}")
        names = list(only or self.variants)
        for name in names:
            for settings in self.candidates(name):
                resolve(read(self.folder / self.config, self.overrides(name, self.numbers[0], settings)))
        tuned = [name for name in names if len(self.candidates(name)) > 1]
        first = self.numbers[0]
        self._all([self._run_of(out, name, first, tried) for name in tuned for tried in self.candidates(name)], jobs, say)
        chosen = {name: self._best(out, name) for name in names}
        if tuned:
            record = out / "chosen.json"
            known = json.loads(record.read_text()) if record.is_file() else {}
            record.write_text(json.dumps({**known, **chosen}, indent=2) + "\n")
        runs = {name: [self._run_of(out, name, seed, chosen[name]) for seed in self.numbers] for name in names}
        self._all([run for of_variant in runs.values() for run in of_variant], jobs, say)
        return [Variant(name, [read_metrics(path) for path, _ in of_variant]) for name, of_variant in runs.items()]

    def _run_of(self, out: Path, name: str, seed: int, tuned: Overrides) -> tuple[Path, dict[str, Any]]:
        """(its directory, its overrides)"""
        label = [name] + [f"{k.rpartition('.')[2]}={v}" for k, v in tuned.items() if len(self.candidates(name)) > 1]
        return out / ",".join(label) / f"s{seed}", self.overrides(name, seed, tuned)

    def _best(self, out: Path, name: str) -> dict[str, Any]:
        """The candidate whose metric is best at the end of its run; of equals the first."""
        candidates = self.candidates(name)
        if len(candidates) == 1:
            return candidates[0]
        by = (self.variants[name] or {}).get("by", self.by)
        sign = -1 if by.endswith(("loss", "mse")) else 1
        scores = []
        for tried in candidates:
            directory, _ = self._run_of(out, name, self.numbers[0], tried)
            measured = [row[by] for row in read_metrics(directory) if by in row]
            if not measured:
                raise ConfigError("by", f"{by!r} was not measured by {name}; splits.val and evaluation say what is")
            scores.append(float("-inf") if measured[-1] is None else sign * measured[-1])
        return candidates[scores.index(max(scores))]

    def _all(self, runs, jobs: int, say: Callable[[str], None]) -> None:
        missing = [(path, overrides) for path, overrides in runs if not (path / "model.safetensors").is_file()]
        calls = [(str(self.folder / self.config), str(path), overrides) for path, overrides in missing]
        if jobs == 1:
            for call in calls:
                say(_run(*call))
        elif calls:
            with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
                for line in pool.map(_run, *zip(*calls)):
                    say(line)


def _run(config: str, out: str, overrides: Overrides) -> str:
    """One run; one that was killed goes on."""
    from fl.simulation import resume, run

    begun = (Path(out) / "checkpoints" / "last.json").is_file()
    result = resume(out) if begun else run(config, out=out, **overrides)
    return f"{out}: {result.reason}"
