"""What runs cost: bytes by group and round, simulated time, participation of clients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from fl.report import ledger
from fl.report.charts import Bars, Chart
from fl.report.costs import ACTIVITIES
from fl.report.page.draw import draw_simulated_time
from fl.report.page.runs import Runs, if_written
from fl.report.page.section import Block, Section, Table
from fl.report.participation import ALL_OUTCOMES, Participation, by_variant, mean_histogram
from fl.report.variants import OVERLAPPING

MOST_BINS = 30  # of a histogram


def sent_bytes(runs: Runs) -> Section | None:
    """MB by group and direction of each variant, and bytes of each round."""
    by_name = {
        name: found for variant in runs.variants if (found := _by_group(variant.directories)) for name in [variant.name]
    }
    if not by_name:
        return None
    keys = list(dict.fromkeys(key for found in by_name.values() for key in found))
    parts = {f"{way} {group}": _column(by_name.values(), (way, group), "encoded MB") for way, group in keys}
    charts: list[Block] = [
        Bars(
            title="MB by group and direction",
            note="Encoded bytes of all clients in a whole run, 10^6 bytes each, mean over the runs of a variant.",
            names=list(by_name),
            parts=parts,
            x_label="MB",
        )
    ]
    for column, title in (("uplink_bytes", "Bytes up in each round"), ("downlink_bytes", "Bytes down in each round")):
        if column in runs.metrics:
            charts.append(runs.lines(column, title, "Encoded bytes of all clients of the round."))
    rows = [
        {"name": name, "direction": way, "group": group, **{column: values[column] for column in COLUMNS}}
        for name, found in by_name.items()
        for (way, group), values in found.items()
    ]
    note = "Payload: raw tensors. Encoded: after the codec, with headers. Wire: as Flower messages. Mean over runs."
    return Section("Bytes", [*charts, Table(rows, note=note)])


COLUMNS = ("messages", "payload MB", "encoded MB", "wire MB")


def _by_group(directories: Sequence[Any]) -> dict[tuple[str, str], dict[str, float]]:
    """(direction, group) -> MB and messages, mean over the runs that have a ledger."""
    tables = []
    for directory in directories:
        rows = if_written(partial(ledger.by_group, directory))
        if rows is not None:
            tables.append({(row["direction"], row["group"]): row for row in rows})
    keys = dict.fromkeys(key for found in tables for key in found)
    return {
        key: {
            column: float(np.mean([found[key][column] if key in found else 0 for found in tables]))
            for column in COLUMNS
        }
        for key in keys
    }


def _column(tables: Any, key: Any, name: str) -> np.ndarray:
    return np.array([found[key][name] if key in found else 0.0 for found in tables])


def simulated_time(runs: Runs) -> Section | None:
    """Where the simulated time goes, for variants with a system model."""
    timed = [variant for variant in runs.variants if variant.has_cost("hours")]
    if not timed:
        return None
    hours = [variant.simulated_hours() for variant in timed]
    parts = {name: np.array([each[name] for each in hours]) for name in (*ACTIVITIES, OVERLAPPING)}
    parts = {name: values for name, values in parts.items() if values.any()}
    bars = Bars(
        title="Where simulated time goes",
        note="Download, compute and upload of the last client in each round, and waiting; mean over runs.",
        names=[variant.name for variant in timed],
        parts=parts,
        x_label="simulated hours",
        draw=partial(draw_simulated_time, timed),
    )
    charts: list[Chart] = [bars]
    if "simulated_seconds" in runs.metrics:
        charts.append(runs.lines("simulated_seconds", "Simulated seconds of each round"))
    return Section("Simulated time", charts)


def participation(runs: Runs) -> Section | None:
    """How often clients took part, how stale updates were, and what became of clients."""
    found: list[tuple[str, list[Participation]]] = []
    for variant in runs.variants:
        each = [if_written(partial(Participation.read, path)) for path in variant.directories]
        known = [run for run in each if run is not None and len(run.times)]
        found += [(variant.name, known)] if known else []
    if not found:
        return None
    charts: list[Block] = [_histogram("Participations of a client", found, "times", "clients")]
    stale = [(name, [run for run in each if run.staleness is not None]) for name, each in found]
    stale = [(name, each) for name, each in stale if each]
    if stale:
        charts.append(_histogram("Staleness of updates in server steps", stale, "staleness", "updates"))
    judged = [(name, each) for name, each in found if any(run.outcomes for run in each)]
    outcomes = {
        outcome: np.array([np.mean([run.outcomes.get(outcome, 0) for run in each]) for _, each in judged])
        for outcome in ALL_OUTCOMES
    }
    outcomes = {outcome: counts for outcome, counts in outcomes.items() if counts.any()}
    if outcomes:
        names = [name for name, _ in judged]
        note = "in: in the sum. Clients of all rounds, mean over runs."
        charts.append(Bars(title="Outcomes of clients", note=note, names=names, parts=outcomes, x_label="clients"))
    note = "Means over runs. Jain: 1 if all clients take part equally often. Gini: 0 then."
    return Section("Participation", [*charts, Table(by_variant(found), note=note)])


def _histogram(title: str, found: Sequence[tuple[str, Sequence[Participation]]], what: str, unit: str) -> Bars:
    """Bars for 0, 1, 2, ... of a quantity, for all variants; beside each other they would be too thin, so stacked."""
    counts = {name: mean_histogram([getattr(run, what) for run in each]) for name, each in found}
    longest = max(map(len, counts.values()))
    width = -(-longest // MOST_BINS)
    bins = -(-longest // width)
    parts = {
        name: np.pad(values, (0, bins * width - len(values))).reshape(bins, width).sum(1)
        for name, values in counts.items()
    }
    names = [str(i * width) if width == 1 else f"{i * width} to {(i + 1) * width - 1}" for i in range(bins)]
    note = f"Number of {unit}, mean over runs."
    return Bars(title=title, note=note, names=names, parts=parts, x_label=unit, upright=True, beside=len(parts) > 1)
