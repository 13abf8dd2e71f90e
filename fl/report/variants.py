"""Variants: runs that differ only in their seed, with their metrics and costs.

A variant is a run directory, a folder of run directories (one per seed), or run directories whose names differ only in
a seed at the end (`fedavg-s0`, `fedavg-s1`, `fedavg-seed2`) and that are in one folder. Variants of the same name in
different folders are told apart by the folders' names (`a/0`, `b/0`). The baselines of a run are variants of their own.

    eval/accuracy        last measured value; after the strategy's final work, if it has any
    eval/accuracy@10     last value measured in the first 10 rounds
    eval/accuracy@last5  mean of the last 5 measured values of rounds
    eval/accuracy@best   value in the round with the best evaluation.select: validation chooses, test rows report

The target val/accuracy=0.9 is reached in the first round whose value, without smoothing, is at least 0.9
(of a loss: at most 0.9).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fl.config.yaml import parse
from fl.errors import did_you_mean
from fl.report.client_metrics import clients
from fl.report.costs import ACTIVITIES, COSTS, REQUIREMENTS, Row, cumulative_cost, is_counted
from fl.report.render import Mean, Reached
from fl.report.sweep_folder import chosen_folders, folder_of, variant_name
from fl.storage.run import of_rounds, read_metrics, rounds_done
from fl.tasks.task import SELECT, minimised

BASELINES = "baselines/*/metrics.jsonl"  # below a run directory, see fl/simulation/baselines.py
OVERLAPPING = "overlapping trips"  # simulated time of asynchronous servers, whose clients' activities overlap


_LOG = logging.getLogger(__name__)
_NO_ROUND = "{0} has no finished round yet; wait, or resume it: fl resume {0}"


class Target(NamedTuple):
    """A value that a metric should reach."""

    metric: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read METRIC=VALUE.

        >>> Target.parse("val/accuracy=0.9"), str(Target.parse("val/loss=0.5"))
        (Target(metric='val/accuracy', value=0.9), 'val/loss<=0.5')
        """
        metric, _, value = text.rpartition("=")
        try:
            return cls(metric.strip(), float(value))
        except ValueError:
            raise ValueError(f"target: {text!r} is not METRIC=VALUE, as in val/accuracy=0.9") from None

    def __str__(self) -> str:
        return f"{self.metric}{'<=' if minimised(self.metric) else '>='}{self.value:g}"

    def first_row(self, rows: Sequence[Row]) -> int | None:
        """Index of the first row that reaches the target, or None."""
        sign = -1 if minimised(self.metric) else 1
        values = enumerate(row.get(self.metric) for row in rows)
        return next((i for i, value in values if value is not None and sign * value >= sign * self.value), None)


@dataclass(frozen=True)
class Variant:
    """Runs that differ only in their seed.

    Args:
        name: name in tables and plots.
        runs: for each run, the rows of its metrics.jsonl.
        directories: run directories in the same order; empty if the rows come from memory.
        baseline: whether they are baselines of other runs.
    """

    name: str
    runs: Sequence[Sequence[Row]]
    directories: Sequence[Path] = ()
    baseline: bool = False

    @classmethod
    def read(cls, name: str, directories: Sequence[Path]) -> Variant:
        """Read the metrics of run directories. Each needs at least one finished round."""
        runs = {path: read_metrics(path) for path in directories}
        for path, rows in runs.items():
            if not rows:
                raise ValueError(_NO_ROUND.format(path))
        return cls.of(name, runs)

    @classmethod
    def of(cls, name: str, runs: Mapping[Path, Sequence[Row]], baseline: bool = False) -> Variant:
        """Return the variant of runs with at least one round: directory -> rows of its metrics.jsonl."""
        done = {path.name: rounds_done(rows[-1]) for path, rows in runs.items()}
        if len(set(done.values())) > 1:
            words = ", ".join(f"{path}: {n}" for path, n in done.items())
            _LOG.warning("the runs of %s have done different numbers of rounds (%s)", name, words)
        return cls(name, list(runs.values()), list(runs), baseline)

    @cached_property
    def configs(self) -> list[Mapping[str, Any]]:
        """Resolved configuration of each run; {} for a directory without one."""
        files = [path / "config.yaml" for path in self.directories]
        known = [parse(file.read_text()) or {} if file.is_file() else {} for file in files]
        return known or [{} for _ in self.runs]

    @property
    def seeds(self) -> list[int | None]:
        """Seed of each run; None if its configuration is unknown."""
        return [config.get("seed") for config in self.configs]

    # -- metrics --------------------------------------------------------------------------------------------------
    def values(self, metric: str) -> np.ndarray:
        """One value per run, (runs,). `metric` may end in @best, @ROUNDS or @lastN, see the module."""
        name, _, when = metric.partition("@")
        if when == "best":
            found = [_value_at_best(of_rounds(rows), name, self._select_metric(i)) for i, rows in enumerate(self.runs)]
        elif re.fullmatch(r"\d*", when):
            rounds = float(when or "inf")
            found = [next(iter(_measured(rows, name, rounds)[-1:]), None) for rows in self.runs]
        elif re.fullmatch(r"last[1-9]\d*", when):
            found = [_mean_of_last(_measured(of_rounds(rows), name), int(when[4:]), metric) for rows in self.runs]
        else:
            raise ValueError(
                f"metric: {metric!r} is neither {name}, {name}@best, {name}@ROUNDS nor {name}@lastN, "
                f"as in {name}@10 and {name}@last5"
            )
        if None in found:
            known = self.known_metrics
            meant = did_you_mean(name, known)
            raise ValueError(f"metric: {metric!r} is not in all runs of {self.name}, which have {known}.{meant}")
        return np.array(found, float)

    def has(self, metric: str) -> bool:
        """Whether a run has a value of the metric in any round; @best, @ROUNDS and @lastN do not matter."""
        name = metric.partition("@")[0]
        return any(row.get(name) is not None for rows in self.runs for row in rows)

    @property
    def known_metrics(self) -> list[str]:
        """Names of the metrics that a run has in any round, sorted."""
        return sorted({key for rows in self.runs for row in rows for key in row if "/" in key})

    def _select_metric(self, i: int) -> str:
        """Metric by which run i chose its best round."""
        configured = (self.configs[i].get("evaluation") or {}).get("select")
        return configured or next((m for m in SELECT if any(m in row for row in self.runs[i])), SELECT[-1])

    def curves(self, metric: str, cost: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each run (cumulative cost, metric), both (measurements,). `cost`: a key of `COSTS`."""
        self.require_cost(cost)
        found = []
        for rows in self.runs:
            costs = cumulative_cost(rows, cost)
            measured = [i for i, row in enumerate(rows) if row.get(metric) is not None]
            found.append((costs[measured], np.array([rows[i][metric] for i in measured])))
        return found

    def client_values(self, metric: str) -> list[np.ndarray]:
        """For each run, the metric of each client on its test rows at the last evaluation, (clients,)."""
        found = [clients(directory) for directory in self.directories]
        for directory, columns in zip(self.directories, found):
            if metric not in columns:
                raise ValueError(f"metric: {metric!r} of clients is not in {directory}, which has {list(columns)[2:]}")
        return [columns[metric] for columns in found]

    # -- costs ----------------------------------------------------------------------------------------------------
    def has_cost(self, cost: str) -> bool:
        """Whether all runs counted a cost."""
        return all(is_counted(rows, cost) for rows in self.runs)

    def require_cost(self, cost: str) -> None:
        """Raise a ValueError if not all runs counted a cost."""
        if not self.has_cost(cost):
            needed = REQUIREMENTS.get(cost, " and ".join(COSTS[cost].columns))
            raise ValueError(f"cost: {cost!r} was not counted in {self.name}; it needs {needed}")

    def total_cost(self, cost: str) -> float:
        """Cost of a whole run, mean over runs."""
        return float(np.mean([cumulative_cost(rows, cost)[-1] for rows in self.runs]))

    def simulated_hours(self) -> dict[str, float]:
        """Simulated hours of each activity, mean over runs.

        Keys: `ACTIVITIES`, and `OVERLAPPING` for all hours of asynchronous servers, whose activities overlap.
        """
        self.require_cost("hours")
        columns = [f"simulated_{name}_seconds" for name in ACTIVITIES]
        hours = [[sum(row.get(column) or 0.0 for row in rows) / 3600 for column in columns] for rows in self.runs]
        known = dict(zip(ACTIVITIES, np.mean(hours, 0).tolist()))
        separate = any(column in row for rows in self.runs for row in rows for column in columns)
        return known | {OVERLAPPING: 0.0 if separate else self.total_cost("hours")}

    def cost_to_reach(self, target: Target, cost: str) -> Reached:
        """Cost up to and including the round that reached a target. `cost`: a key of `COSTS`."""
        if not any(row.get(target.metric) is not None for rows in self.runs for row in rows):
            known = self.known_metrics
            meant = did_you_mean(target.metric, known)
            raise ValueError(f"target: {target.metric!r} is in no run of {self.name}, which have {known}.{meant}")
        self.require_cost(cost)
        first = [target.first_row(rows) for rows in self.runs]
        costs = [cumulative_cost(rows, cost) for rows in self.runs]
        reached = np.array([of_run[i] for of_run, i in zip(costs, first) if i is not None], float)
        missed = [float(of_run[-1]) for of_run, i in zip(costs, first) if i is None]
        found = Mean.of(reached) if len(reached) else None
        return Reached(found and found.mean, found and found.sd, len(reached), len(first), min(missed, default=None))


def _measured(rows: Sequence[Row], metric: str, rounds: float = float("inf")) -> list[float]:
    return [row[metric] for row in rows if row.get(metric) is not None and row["round"] < rounds]


def _mean_of_last(values: Sequence[float], number: int, metric: str) -> float | None:
    """The mean of the last `number` values, None without any."""
    if values and len(values) < number:
        raise ValueError(f"metric: {metric!r} needs {number} evaluations; a run has {len(values)}")
    return float(np.mean(values[-number:])) if values else None


def _value_at_best(rows: Sequence[Row], metric: str, select: str) -> float | None:
    """The metric in the best round by `select`; the first of equally good rounds, among those that measured both."""
    both = [row for row in rows if row.get(metric) is not None and row.get(select) is not None]
    sign = -1 if minimised(select) else 1
    return max(both, key=lambda row: sign * row[select])[metric] if both else None


# -- reading ----------------------------------------------------------------------------------------------------------
def read_variants(directories: Iterable[Path], empty: list[Path] | None = None) -> list[Variant]:
    """Group run directories into variants and read them; baselines come after all runs.

    Args:
        directories: run directories, folders of run directories, or the folder of a sweep. A run that is given twice
            counts once.
        empty: runs without a finished round are added to this list. Default: a warning names them, and it is an error
            if no other run is left.
    """
    grouped: dict[tuple[Path, str], dict[Path, Sequence[Row]]] = {}  # by folder and name
    left_out: list[Path] = []
    seen: set[Path] = set()
    for label, directory in [each for given in directories for each in _variant_folders(given)]:
        for path in run_directories(directory):
            if path.resolve() in seen:
                continue
            seen.add(path.resolve())
            rows = read_metrics(path)
            if not rows:
                left_out.append(path)
                continue
            name = label if path != directory else re.sub(r"[-_]?s(eed)?\d+$", "", directory.name)
            grouped.setdefault((directory.resolve().parent, name or directory.name), {})[path] = rows
    names = _distinct_names(list(grouped))
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{twice[0]!r} is the name of two variants; rename a folder")
    found = dict(zip(names, grouped.values()))
    if empty is not None:
        empty += left_out
    elif not found:
        raise ValueError(_NO_ROUND.format(left_out[0]))
    else:
        for path in left_out:
            _LOG.warning("%s has no finished round yet and is left out; fl resume %s continues it", path, path)
    baselines = {
        name: [file.parent for path in paths for file in sorted(path.glob(BASELINES)) if file.stat().st_size]
        for name, paths in found.items()
    }
    unambiguous = sum(map(bool, baselines.values())) == 1
    others: dict[str, dict[Path, Sequence[Row]]] = {}
    for name, paths in baselines.items():
        for path in paths:
            others.setdefault(path.name if unambiguous else f"{name}: {path.name}", {})[path] = read_metrics(path)
    methods = [Variant.of(name, runs) for name, runs in found.items()]
    return methods + [Variant.of(name, runs, baseline=True) for name, runs in others.items()]


def _distinct_names(variants: Sequence[tuple[Path, str]]) -> list[str]:
    """Names of variants from (folder, name): equal names in different folders begin with their folders.

    >>> _distinct_names([(Path("/runs/a"), "0"), (Path("/runs/b"), "0"), (Path("/runs/b"), "1")])
    ['a/0', 'b/0', '1']
    """
    found = []
    for folder, name in variants:
        others = [other.parts[::-1] for other, same in variants if same == name and other != folder]
        own = folder.parts[::-1]
        depth = next(k for k in range(len(own) + 1) if all(other[:k] != own[:k] for other in others))
        found.append("/".join([*own[:depth][::-1], name]))
    return found


def _variant_folders(directory: Path) -> list[tuple[str, Path]]:
    """(name, folder) of one or several variants.

    A folder is its own variant. The folder OUT of a sweep has OUT/VARIANT/s0 for each variant; one that was tuned is
    the runs of its chosen setting, also as OUT/VARIANT.
    """
    if any(directory.glob("metrics.jsonl")) or any(directory.glob("*/metrics.jsonl")):
        return [(variant_name(directory), directory)]
    if not directory.exists():  # the name of a variant, not of its folder
        chosen = chosen_folders(directory.parent)
        return [(directory.name, chosen.get(directory.name, directory.parent / folder_of(directory.name, {})))]
    chosen = chosen_folders(directory)
    folders = sorted({file.parent.parent for file in directory.glob("*/*/metrics.jsonl")})
    others = [(variant_name(folder), folder) for folder in folders if folder.name.partition(",")[0] not in chosen]
    return [*chosen.items(), *others] or [(variant_name(directory), directory)]


def run_directories(directory: Path) -> list[Path]:
    """`directory` itself if it is a run directory, else the run directories in it, sorted by name."""
    runs = [directory] if (directory / "metrics.jsonl").is_file() else []
    runs = runs or [file.parent for file in sorted(directory.glob("*/metrics.jsonl"))]
    if not runs:
        raise ValueError(f"{directory} is no run directory, and holds none: there is no metrics.jsonl")
    return runs
