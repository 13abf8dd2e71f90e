"""The trials of a sweep, read from its folder: what was tried, what came out, what was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl.config.space import Space, from_plain
from fl.report.sweep_folder import CHOSEN, TRIALS, folder_of, has_failed, read_record, was_stopped
from fl.storage.run import read_metrics


@dataclass(frozen=True)
class Trial:
    """One setting of a variant.

    Args:
        setting: key -> value.
        values: last value of the metric in each of its runs, the tuning seed first; empty if none was measured.
        failed: whether its training failed.
        stopped: whether the search stopped it early; its value is that of the last round.
        chosen: whether it was chosen.
    """

    setting: Mapping[str, Any]
    values: Sequence[float]
    failed: bool = False
    stopped: bool = False
    chosen: bool = False


@dataclass(frozen=True)
class TunedVariant:
    """A variant with its trials.

    Args:
        name: its name.
        by: the metric that chooses.
        space: what was searched.
        trials: in the order in which they were tried.
    """

    name: str
    by: str
    space: Space
    trials: Sequence[Trial]

    @property
    def chosen(self) -> Trial | None:
        """The trial that was chosen; None while the sweep has not finished."""
        return next((trial for trial in self.trials if trial.chosen), None)


def read_sweep(out: Path, metric: str | None = None) -> list[TunedVariant]:
    """The tuned variants of a sweep.

    Args:
        out: folder of the sweep.
        metric: metric to read; None: the one that chooses.

    Raises:
        ValueError: the folder holds no tuned variant.
    """
    chosen, found = read_record(out / CHOSEN), []
    for name, record in read_record(out / TRIALS).items():
        by = metric or record["by"]
        trials = [
            _read_trial(out / folder_of(name, setting), setting, by, record["seed"], chosen.get(name) == setting)
            for setting in record["trials"]
        ]
        found.append(TunedVariant(name, by, from_plain(record["space"]), trials))
    if not found:
        raise ValueError(f"{out} holds no {TRIALS}: it is not the folder of a sweep that tries several values")
    return found


def _read_trial(folder: Path, setting: Mapping[str, Any], by: str, seed: int, chosen: bool) -> Trial:
    first = folder / f"s{seed}"
    runs = [first, *sorted(path for path in folder.glob("s*") if path != first)] if chosen else [first]
    values = []
    for run in runs:
        rows = read_metrics(run) if (run / "metrics.jsonl").is_file() else []
        values += [row[by] for row in rows if row.get(by) is not None][-1:]
    failed = has_failed(first)
    return Trial(setting, () if failed else values, failed, was_stopped(first), chosen)
