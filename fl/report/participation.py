"""Who took part how often, how stale what they brought was, and what became of the others.

A client takes part in a round in which it trains and what it brings is used (of an asynchronous server: at every arrival that
is used). Who that was is in `clients.parquet`, or, of methods that measure nothing as they train, in the ledger: who sent something up.
Clients are all that may take part; those who never did count with 0.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fl.report.compare import Variant
from fl.report.ledger import read as read_ledger
from fl.report.render import Mean
from fl.simulation.evaluation import gini
from fl.storage.run import read_metrics
from fl.system.metrics import histogram, jain, participations
from fl.system.synchronous import OUTCOMES

Row = dict[str, Any]


@dataclass(frozen=True)
class Participation:
    """Of one run. times (clients,): participations of each; staleness (n,): of each update that was used, if the server was
    asynchronous; fates: how many clients met which of FATES, or were discarded, if the run had a system model."""

    times: np.ndarray
    staleness: np.ndarray | None
    fates: dict[str, int]

    @classmethod
    def read(cls, directory: Path) -> Participation:
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        file = directory / "clients.parquet"
        if not file.is_file():
            raise ValueError(
                f"{directory} has no clients.parquet; a run writes it when it ends (fl resume goes on with one)"
            )
        stale = "staleness" in pq.read_schema(file).names
        columns = ["round", "client", *(["staleness"] if stale else [])]
        found = pq.read_table(file, columns=columns, filters=pc.field("split") == "train")
        if not len(found):
            found = read_ledger(directory, ["round", "client", "direction"])
            found = found.filter(pc.and_(pc.equal(found["direction"], "up"), pc.greater_equal(found["round"], 0)))
        staleness = found["staleness"].drop_null().to_numpy().astype(np.int64) if stale else None
        if staleness is None:  # several exchanges of a round are one participation
            found = found.group_by(["round", "client"]).aggregate([])
        clients = found["client"].to_numpy()
        fates = _fates(directory) | ({} if staleness is None else {"in": len(staleness)})
        return cls(participations(clients, _population(directory, clients)), staleness, fates)

    @property
    def took_part(self) -> int:
        return int(np.count_nonzero(self.times))


def _population(directory: Path, clients: np.ndarray) -> int:
    """As the run wrote down when it began; of one that did not, up to the last that is known of."""
    file = directory / "environment.json"
    told = json.loads(file.read_text()).get("clients") if file.is_file() else None
    return int(told or 0) or int(clients.max(initial=-1)) + 1


def _fates(directory: Path) -> dict[str, int]:
    rows = read_metrics(directory)
    columns = {fate: f"clients_{fate}" for fate in OUTCOMES} | {"discarded": "discarded"}
    known = {name: column for name, column in columns.items() if any(column in row for row in rows)}
    return {name: int(sum(row.get(column) or 0 for row in rows)) for name, column in known.items()}


Found = Sequence[tuple[str, Sequence[Participation]]]  # by variant, of its runs


def read(chosen: Sequence[Variant]) -> Found:
    return [(variant.name, [Participation.read(path) for path in variant.directories]) for variant in chosen]


def by_variant(found: Found) -> list[Row]:
    """Evenness of each, as means over its runs: `took part`: clients that did at all; then how often clients did."""
    fates = [name for name in (*OUTCOMES, "discarded") if any(name in of.fates for _, runs in found for of in runs)]
    stale = any(of.staleness is not None for _, runs in found for of in runs)
    rows = []
    for name, runs in found:
        row: Row = {"name": name, "runs": len(runs), "clients": _mean([len(of.times) for of in runs])}
        row["took part"] = _mean([of.took_part for of in runs])
        for what, of_times in (("min", np.min), ("median", np.median), ("mean", np.mean), ("max", np.max)):
            row[what] = _mean([of_times(of.times) if len(of.times) else 0 for of in runs])
        for what, index in (("Jain", jain), ("Gini", gini)):
            row[what] = (
                Mean.of(np.array([index(of.times) for of in runs])) if all(len(of.times) for of in runs) else None
            )
        if stale:
            known = [of.staleness for of in runs if of.staleness is not None and len(of.staleness)]
            row["mean staleness"] = _mean([values.mean() for values in known]) if known else None
            row["max staleness"] = _mean([values.max() for values in known]) if known else None
        for fate in fates:
            met = [of.fates[fate] for of in runs if fate in of.fates]
            row[fate] = _mean(met) if met else None
        rows.append(row)
    return rows


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def by_times(found: Found) -> list[Row]:
    """How many clients took part 0, 1, 2, ... times, the mean over runs; numbers that nobody has are left out."""
    return _histograms("times", [(name, [of.times for of in runs]) for name, runs in found])


def by_staleness(found: Found) -> list[Row]:
    """How many updates were 0, 1, 2, ... server steps old when they were used, the mean over runs."""
    known = [(name, [of.staleness for of in runs if of.staleness is not None]) for name, runs in found]
    if not any(runs for _, runs in known):
        raise ValueError("staleness: none of the runs has an asynchronous server; see docs/system.md")
    return _histograms("staleness", known)


def _histograms(title: str, found: Sequence[tuple[str, Sequence[np.ndarray]]]) -> list[Row]:
    each = {name: mean_histogram(runs) for name, runs in found if runs}
    longest = max(map(len, each.values()))
    columns = {name: np.pad(counts, (0, longest - len(counts))) for name, counts in each.items()}
    some = np.flatnonzero(np.sum(list(columns.values()), 0))
    return [{title: k} | {name: float(counts[k]) for name, counts in columns.items()} for k in some.tolist()]


def mean_histogram(runs: Sequence[np.ndarray]) -> np.ndarray:
    """(max + 1,): how many values are 0, 1, 2, ..., the mean over runs."""
    counts = [histogram(values) for values in runs]
    longest = max(map(len, counts))
    return np.mean([np.pad(one, (0, longest - len(one))) for one in counts], 0)


BY = {"variant": by_variant, "times": by_times, "staleness": by_staleness}
