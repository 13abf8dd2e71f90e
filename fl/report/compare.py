"""Runs side by side: a metric against what it cost, as the mean and spread over seeds.

A variant is a run directory, a folder of run directories (one per seed), or run directories of one name but for the seed at its
end (`fedavg-s0`, `fedavg-s1`, `fedavg-seed2`). The baselines of runs stand beside them.

    eval/accuracy        when it was last measured
    eval/accuracy@10     the same, within the first 10 rounds
    eval/accuracy@best   in the round whose evaluation.select was best: chosen by validation rows, told of test rows

A target val/accuracy=0.9 is reached in the first round whose value, as measured, is at least 0.9 (at most, of a loss). What it
cost is counted up to and with that round, in each of `COSTS` that the run knows of.
Deviations are those of a sample (ddof 1).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fl.config.yaml import parse
from fl.report.render import Difference, Mean, Reached, markdown
from fl.storage.run import read_metrics
from fl.tasks.task import SELECT, minimised

__all__ = [
    "Variant",
    "clients",
    "default_metric",
    "find_target",
    "markdown",
    "matrix",
    "megabytes",
    "table",
    "variants",
]

Row = Mapping[str, Any]
BASELINES = "baselines/*/metrics.jsonl"  # below a run's directory, see fl/simulation/baselines.py
COSTS = {  # name -> (what it counts, in words; the column of metrics that it adds up; how much of that is one)
    "round": ("rounds", "", 1.0),
    "up": ("MB up", "uplink_bytes", 1e6),
    "down": ("MB down", "downlink_bytes", 1e6),
    "multicast": ("MB down (multicast)", "downlink_multicast_bytes", 1e6),
    "hours": ("simulated hours", "simulated_seconds", 3600.0),
    "joules": ("joules", "simulated_joules", 1.0),
    "work": ("client-rounds", "cohort_size", 1.0),
}
WENT = ("download", "compute", "upload", "waiting")  # where simulated time goes
PREFERRED = ("eval/accuracy", "clients/accuracy_weighted", "val/accuracy", "eval/loss", "train/loss")


class Target(NamedTuple):
    """A value that a metric is to reach."""

    metric: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Target:
        metric, _, value = text.rpartition("=")
        try:
            return cls(metric.strip(), float(value))
        except ValueError:
            raise ValueError(f"target: {text!r} is not METRIC=VALUE, as in val/accuracy=0.9") from None

    def __str__(self) -> str:
        return f"{self.metric}{'<=' if minimised(self.metric) else '>='}{self.value:g}"

    def reached(self, rows: Sequence[Row]) -> int | None:
        """The place of the first row that is there, or None."""
        sign = -1 if minimised(self.metric) else 1
        values = enumerate(row.get(self.metric) for row in rows)
        return next((i for i, value in values if value is not None and sign * value >= sign * self.value), None)


@dataclass(frozen=True)
class Variant:
    """Runs that differ in their seeds; of each the rows of its metrics, and the directory if there is one."""

    name: str
    runs: Sequence[Sequence[Row]]
    directories: Sequence[Path] = ()

    @classmethod
    def read(cls, name: str, directories: Sequence[Path]) -> Variant:
        runs = [read_metrics(path) for path in directories]
        for path, rows in zip(directories, runs):
            if not rows:
                raise ValueError(f"{path} has no finished round yet; wait, or go on with it: fl resume {path}")
        return cls(name, runs, directories)

    @cached_property
    def configs(self) -> list[Mapping[str, Any]]:
        """Resolved, one per run; empty where a run directory holds none."""
        files = [path / "config.yaml" for path in self.directories]
        known = [parse(file.read_text()) or {} if file.is_file() else {} for file in files]
        return known or [{} for _ in self.runs]

    @property
    def seeds(self) -> list[int | None]:
        return [config.get("seed") for config in self.configs]

    def values(self, metric: str) -> np.ndarray:
        """(runs,): a metric, @10 or @best of it (see the module)."""
        name, _, when = metric.partition("@")
        if when == "best":
            found = [_at_best(rows, name, self._select(i)) for i, rows in enumerate(self.runs)]
        else:
            if not re.fullmatch(r"\d*", when):
                raise ValueError(
                    f"metric: {metric!r} is neither {name}, {name}@best nor {name}@ROUNDS, as in {name}@10"
                )
            rounds = float(when or "inf")
            found = [next(iter(_measured(rows, name, rounds)[-1:]), None) for rows in self.runs]
        if None in found:
            known = sorted({key for rows in self.runs for row in rows for key in row if "/" in key})
            raise ValueError(f"metric: {metric!r} is not in all runs of {self.name}, which have {known}")
        return np.array(found, float)

    def _select(self, i: int) -> str:
        """The metric by which the i-th run chose its best round."""
        asked = (self.configs[i].get("evaluation") or {}).get("select")
        return asked or next((m for m in SELECT if any(m in row for row in self.runs[i])), SELECT[-1])

    def curves(self, metric: str, cost: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per run (cost so far, metric) wherever it was measured; cost: one of `COSTS`."""
        self.must_know(cost)
        found = []
        for rows in self.runs:
            costs = costs_of(rows, cost)
            at = [i for i, row in enumerate(rows) if row.get(metric) is not None]
            found.append((costs[at], np.array([rows[i][metric] for i in at])))
        return found

    def clients(self, metric: str) -> list[np.ndarray]:
        """Per run (clients,): the metric of each client's test rows when it was last evaluated."""
        found = [clients(directory) for directory in self.directories]
        for directory, columns in zip(self.directories, found):
            if metric not in columns:
                raise ValueError(f"metric: {metric!r} of clients is not in {directory}, which has {list(columns)[2:]}")
        return [columns[metric] for columns in found]

    def knows(self, cost: str) -> bool:
        """Whether all of its runs counted a cost."""
        return all(_counted(rows, cost) for rows in self.runs)

    def must_know(self, cost: str) -> None:
        if not self.knows(cost):
            needs = {"hours": "virtual time, `system:`", "joules": "the watts of all devices, `system.devices:`"}
            raise ValueError(
                f"cost: {cost!r} was not counted in {self.name}; it needs {needs.get(cost, COSTS[cost][1])}"
            )

    def spent(self, cost: str) -> float:
        """In a whole run, the mean over runs."""
        return float(np.mean([costs_of(rows, cost)[-1] for rows in self.runs]))

    def went(self) -> dict[str, float]:
        """Where simulated time went: hours of each of `WENT`, the mean over runs; under "" those that were not told apart, as
        the trips of an asynchronous server's clients overlap."""
        self.must_know("hours")
        columns = [f"simulated_{name}_seconds" for name in WENT]
        hours = [[sum(row.get(column) or 0.0 for row in rows) / 3600 for column in columns] for rows in self.runs]
        known = dict(zip(WENT, np.mean(hours, 0).tolist()))
        apart = any(column in row for rows in self.runs for row in rows for column in columns)
        return known | {"": 0.0 if apart else self.spent("hours")}

    def to(self, target: Target, cost: str) -> Reached:
        """What it cost to reach a target: one of `COSTS`."""
        if not any(row.get(target.metric) is not None for rows in self.runs for row in rows):
            known = sorted({key for rows in self.runs for row in rows for key in row if "/" in key})
            raise ValueError(f"target: {target.metric!r} is in no run of {self.name}, which have {known}")
        self.must_know(cost)
        places = [target.reached(rows) for rows in self.runs]
        costs = [costs_of(rows, cost) for rows in self.runs]
        there = np.array([of_run[i] for of_run, i in zip(costs, places) if i is not None], float)
        in_vain = [float(of_run[-1]) for of_run, i in zip(costs, places) if i is None]
        mean, sd = Mean.of(there) if len(there) else (None, None)
        return Reached(mean, sd, len(there), len(places), min(in_vain, default=None))


def _measured(rows: Sequence[Row], metric: str, rounds: float) -> list[float]:
    return [row[metric] for row in rows if row.get(metric) is not None and row["round"] < rounds]


def _at_best(rows: Sequence[Row], metric: str, select: str) -> float | None:
    """The metric in the first of the rounds that are best by `select`, of those that measured both."""
    both = [row for row in rows if row.get(metric) is not None and row.get(select) is not None]
    sign = -1 if minimised(select) else 1
    return max(both, key=lambda row: sign * row[select])[metric] if both else None


def costs_of(rows: Sequence[Row], cost: str) -> np.ndarray:
    """(rounds,): one of `COSTS`, up to and with each round; what came before round 0 counts, but as no round."""
    if cost == "round":
        return np.array([row["round"] + 1 for row in rows])
    _, column, one = COSTS[cost]
    return np.cumsum([row.get(column) or 0 for row in rows]) / one


def _counted(rows: Sequence[Row], cost: str) -> bool:
    column = COSTS[cost][1]
    if cost == "joules":  # nothing is said of a round in which somebody's watts are not known
        rows = [row for row in rows if "clients_in" in row]
        return bool(rows) and all(column in row for row in rows)
    return not column or any(column in row for row in rows)


def megabytes(rows: Sequence[Row], direction: str) -> np.ndarray:
    """(rounds,): encoded MB (10^6 bytes) sent up or down until then; what came before round 0 counts."""
    return costs_of(rows, direction)


def variants(directories: Iterable[Path]) -> list[Variant]:
    """See the module."""
    found: dict[str, list[Path]] = {}
    for directory in directories:
        for path in runs_in(directory):
            name = directory.name if path != directory else re.sub(r"[-_]?s(eed)?\d+$", "", directory.name)
            found.setdefault(name or directory.name, []).append(path)
    beside = {
        name: [file.parent for path in paths for file in _begun(path.glob(BASELINES))] for name, paths in found.items()
    }
    alone = sum(map(bool, beside.values())) == 1
    for name, paths in beside.items():
        for path in paths:
            found.setdefault(path.name if alone else f"{name}: {path.name}", []).append(path)
    return [Variant.read(name, paths) for name, paths in found.items()]


def runs_in(directory: Path) -> list[Path]:
    """A run directory, or those in a folder, in order."""
    runs = [directory] if (directory / "metrics.jsonl").is_file() else []
    runs = runs or [file.parent for file in sorted(directory.glob("*/metrics.jsonl"))]
    if not runs:
        raise ValueError(f"{directory} is no run directory, and holds none: there is no metrics.jsonl")
    return runs


def _begun(files: Iterable[Path]) -> list[Path]:
    """Those of the files of metrics that have a round, in order."""
    return sorted(file for file in files if file.stat().st_size)


def default_metric(chosen: Sequence[Variant]) -> str:
    """The first of `PREFERRED` that all runs have."""
    for metric in PREFERRED:
        if all(any(metric in row for row in rows) for variant in chosen for rows in variant.runs):
            return metric
    raise ValueError(f"metric: the runs have none of {PREFERRED} in common; name one")


def find_target(text: str, chosen: Sequence[Variant]) -> Target:
    """`Target.parse`, a metric without its prefix found among those that all variants have: that of val/, or the only one."""
    asked = Target.parse(text)
    has = [{key for rows in variant.runs for row in rows for key in row} for variant in chosen]
    if "/" in asked.metric or any(asked.metric in keys for keys in has):
        return asked
    found = sorted(key for key in set.intersection(*has) if key.endswith(f"/{asked.metric}"))
    found = [key for key in found if key.startswith("val/")] or found
    if len(found) != 1:
        known = found or sorted({key for keys in has for key in keys if "/" in key})
        of = "may be any of" if found else "is in no name of"
        raise ValueError(f"target: {asked.metric!r} {of} {known}; name one of them whole")
    return asked._replace(metric=found[0])


def table(
    chosen: Sequence[Variant],
    metrics: Sequence[str],
    targets: Sequence[Target] = (),
    versus: str | None = None,
    multicast: bool = False,
) -> list[dict[str, Any]]:
    """A row per variant: name, runs, rounds, mean and deviation of each metric, its difference to the variant `versus`, the cost of
    each target, MB up and down in a run; hours, joules and client-rounds where a variant has counted them. `multicast`: MB down
    are those of what all receive sent once."""
    other = next((variant for variant in chosen if variant.name == versus), None)
    if versus is not None and other is None:
        raise ValueError(f"versus: {versus!r} is not one of {[variant.name for variant in chosen]}")
    spent = ["up", "multicast" if multicast else "down"]
    spent += [cost for cost in ("hours", "joules") if any(variant.knows(cost) for variant in chosen)]
    counted = ["round", *spent, *(["work"] if any(variant.knows("work") for variant in chosen) else [])]
    rows = []
    for variant in chosen:
        row: dict[str, Any] = {"name": variant.name, "runs": len(variant.runs)}
        row["rounds"] = max(rows_[-1]["round"] for rows_ in variant.runs) + 1
        for metric in metrics:
            row[metric] = Mean.of(variant.values(metric))
            if other is not None:
                row[f"{metric} - {versus}"] = None if variant is other else difference(variant, other, metric)
        for target in targets:
            for cost in counted:
                row[f"{COSTS[cost][0]} to {target}"] = variant.to(target, cost) if variant.knows(cost) else None
        for cost in spent:
            row[COSTS[cost][0]] = variant.spent(cost) if variant.knows(cost) else None
        rows.append(row)
    return rows


def difference(variant: Variant, other: Variant, metric: str) -> Difference:
    """The mean over the seeds that both have of variant - other, with Student's 95 % interval: mean +- t_{.975, n-1} sd / sqrt(n)."""
    ours, theirs = (dict(zip(of.seeds, of.values(metric))) for of in (variant, other))
    for of, known in ((variant, ours), (other, theirs)):
        if None in known or len(known) < len(of.runs):
            raise ValueError(f"versus: the runs of {of.name} have seeds {of.seeds}; pairs need one run for each seed")
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        raise ValueError(
            f"versus: {variant.name} and {other.name} have no seed in common: {variant.seeds}, {other.seeds}"
        )
    mean, sd = Mean.of(np.array([ours[seed] - theirs[seed] for seed in seeds]))
    if sd is None:
        return Difference(mean, None, None, 1)
    from scipy.stats import t

    half = float(t.ppf(0.975, len(seeds) - 1)) * sd / len(seeds) ** 0.5
    return Difference(mean, mean - half, mean + half, len(seeds))


def clients(directory: str | Path, split: str = "test") -> dict[str, np.ndarray]:
    """What a finished run measured on each client when it was last evaluated: columns client, num_examples and the metrics of
    `split` (test or val), a row per client by number."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    file = Path(directory) / "clients.parquet"
    if not file.is_file():
        raise ValueError(
            f"{directory} has no clients.parquet; a run writes it when it ends (fl resume goes on with one)"
        )
    found = pq.read_table(file, filters=pc.field("split") == split)
    if not len(found):
        raise ValueError(
            f"{directory}: no client was evaluated on its {split} rows; splits.{split} and evaluation say what is"
        )
    found = (
        found.filter(pc.equal(found["round"], pc.max(found["round"])))
        .sort_by("client")
        .drop_columns(["round", "split"])
    )
    return {name: found[name].to_numpy() for name in found.column_names if found[name].null_count < len(found)}


def of_clients(metrics: Sequence[str]) -> str:
    """The metric of a client that the first `clients/...` among the metrics tells of, else accuracy."""
    found = next((metric for metric in metrics if metric.startswith("clients/")), "clients/accuracy")
    return re.sub("_(mean|weighted|std|worst10|gini)$", "", found.partition("@")[0].removeprefix("clients/"))


def matrix(directory: Path) -> np.ndarray:
    """(T, T): a[t, s], the accuracy on task s after task t of a stream; NaN for tasks not met yet."""
    stream = parse((directory / "config.yaml").read_text()).get("stream")
    rows = [row for row in read_metrics(directory) if "stream/acc" in row]
    if not stream or not rows:
        raise ValueError(f"{directory} is not a run of a task stream whose first task is done")
    seen = [[row.get(f"task{s}/accuracy", np.nan) for s in range(stream["tasks"])] for row in rows]
    return np.array(seen, float)
