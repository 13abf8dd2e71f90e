"""How often clients took part, how stale their updates were, and how many were late or dropped out.

A client takes part in a round if its update is used; with an asynchronous server, at each arrival that is used. The
source is `clients.parquet`; for methods that measure nothing in training it is the ledger, which knows who sent
something up. Every client that may take part is counted, also with 0 participations.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fl.report.client_metrics import read as read_clients
from fl.report.ledger import STATISTICS
from fl.report.ledger import read as read_ledger
from fl.report.render import Mean
from fl.report.variants import Variant
from fl.storage.run import read_metrics
from fl.system.metrics import histogram, jain, participations
from fl.system.synchronous import OUTCOMES
from fl.tasks.statistics import gini

Row = dict[str, Any]
ALL_OUTCOMES = (*OUTCOMES, "discarded")


@dataclass(frozen=True)
class Participation:
    """Participation in one run.

    Args:
        times: number of participations of each client, (clients,).
        staleness: age in server steps of each used update, (updates,); None with a synchronous server.
        outcomes: number of clients by outcome (`ALL_OUTCOMES`); {} without a system model.
    """

    times: np.ndarray
    staleness: np.ndarray | None
    outcomes: dict[str, int]

    @classmethod
    def read(cls, directory: Path) -> Participation:
        """Read a run."""
        import pyarrow.compute as pc

        found = read_clients(directory, "train", ["round", "client", "staleness"])
        if not len(found):
            found = read_ledger(directory, ["round", "client", "direction"])
            found = found.filter(pc.and_(pc.equal(found["direction"], "up"), pc.greater_equal(found["round"], 0)))
        asynchronous = "staleness" in found.column_names
        staleness = found["staleness"].drop_null().to_numpy().astype(np.int64) if asynchronous else None
        if staleness is None:  # several exchanges of a round are one participation
            found = found.group_by(["round", "client"]).aggregate([])
        clients = found["client"].to_numpy()
        outcomes = _count_outcomes(directory) | ({} if staleness is None else {"in": len(staleness)})
        return cls(participations(clients, _population(directory, clients)), staleness, outcomes)

    @property
    def took_part(self) -> int:
        """Number of clients with at least one participation."""
        return int(np.count_nonzero(self.times))


def _population(directory: Path, clients: np.ndarray) -> int:
    """Number of clients, from environment.json; without it, up to the largest known client."""
    file = directory / "environment.json"
    recorded = json.loads(file.read_text()).get("clients") if file.is_file() else None
    return int(recorded or 0) or int(clients.max(initial=-1)) + 1


def _count_outcomes(directory: Path) -> dict[str, int]:
    rows = read_metrics(directory)
    columns = {outcome: f"clients_{outcome}" for outcome in OUTCOMES} | {"discarded": "discarded"}
    known = {name: column for name, column in columns.items() if any(column in row for row in rows)}
    return {name: int(sum(row.get(column) or 0 for row in rows)) for name, column in known.items()}


ByVariant = Sequence[tuple[str, Sequence[Participation]]]  # (variant, participation in each of its runs)


def read_participation(variants: Sequence[Variant]) -> ByVariant:
    """Read the participation in all runs of the variants."""
    return [(variant.name, [Participation.read(path) for path in variant.directories]) for variant in variants]


def by_variant(found: ByVariant) -> list[Row]:
    """A row per variant, means over its runs: how many clients took part, how often, and how evenly."""
    outcomes = [name for name in ALL_OUTCOMES if any(name in run.outcomes for _, runs in found for run in runs)]
    asynchronous = any(run.staleness is not None for _, runs in found for run in runs)
    rows = []
    for name, runs in found:
        row: Row = {"name": name, "runs": len(runs), "clients": _mean(len(run.times) for run in runs)}
        row["took part"] = _mean(run.took_part for run in runs)
        for label, statistic in STATISTICS.items():
            row[label] = _mean(statistic(run.times) if len(run.times) else 0 for run in runs)
        for label, index in (("Jain", jain), ("Gini", gini)):
            row[label] = _mean_index(index, [run.times for run in runs])
        if asynchronous:
            known = [run.staleness for run in runs if run.staleness is not None and len(run.staleness)]
            row["mean staleness"] = _mean(values.mean() for values in known) if known else None
            row["max staleness"] = _mean(values.max() for values in known) if known else None
        for outcome in outcomes:
            counts = [run.outcomes[outcome] for run in runs if outcome in run.outcomes]
            row[outcome] = _mean(counts) if counts else None
        rows.append(row)
    return rows


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _mean_index(index: Callable[[np.ndarray], float | None], times: Sequence[np.ndarray]) -> Mean | None:
    """Index of evenness, mean and deviation over runs; None if a run has no client."""
    return Mean.of(np.array([index(each) for each in times])) if all(map(len, times)) else None


def by_times(found: ByVariant) -> list[Row]:
    """Number of clients that took part 0, 1, 2, ... times, mean over runs; rows of zeros are left out."""
    return _histogram_rows("times", [(name, [run.times for run in runs]) for name, runs in found])


def by_staleness(found: ByVariant) -> list[Row]:
    """Number of updates that were 0, 1, 2, ... server steps old when they were used, mean over runs."""
    known = [(name, [run.staleness for run in runs if run.staleness is not None]) for name, runs in found]
    if not any(runs for _, runs in known):
        raise ValueError("staleness: none of the runs has an asynchronous server; see docs/system.md")
    return _histogram_rows("staleness", known)


def _histogram_rows(title: str, found: Sequence[tuple[str, Sequence[np.ndarray]]]) -> list[Row]:
    each = {name: mean_histogram(runs) for name, runs in found if runs}
    longest = max(map(len, each.values()))
    columns = {name: np.pad(counts, (0, longest - len(counts))) for name, counts in each.items()}
    present = np.flatnonzero(np.sum(list(columns.values()), 0))
    return [{title: k} | {name: float(counts[k]) for name, counts in columns.items()} for k in present.tolist()]


def mean_histogram(runs: Sequence[np.ndarray]) -> np.ndarray:
    """Number of values 0, 1, 2, ..., mean over runs, (max + 1,)."""
    counts = [histogram(values) for values in runs]
    longest = max(map(len, counts))
    return np.mean([np.pad(one, (0, longest - len(one))) for one in counts], 0)


BY = {"variant": by_variant, "times": by_times, "staleness": by_staleness}
