"""What runs cost: rounds, bytes, simulated time, energy and client work, from the rows of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fl.storage.run import rounds_done

Row = Mapping[str, Any]


class Cost(NamedTuple):
    """A cost of a run.

    Args:
        label: its name in tables and plots.
        columns: the columns of metrics.jsonl that are summed over rounds; none for the number of rounds.
        unit: how much of the columns is one unit of the cost.
    """

    label: str
    columns: tuple[str, ...]
    unit: float


COSTS = {
    "round": Cost("rounds", (), 1.0),
    "up": Cost("MB up", ("uplink_bytes",), 1e6),
    "down": Cost("MB down", ("downlink_bytes",), 1e6),
    "multicast": Cost("MB down (multicast)", ("downlink_multicast_bytes",), 1e6),
    "total": Cost("MB up and down", ("uplink_bytes", "downlink_bytes"), 1e6),
    "hours": Cost("simulated hours", ("simulated_seconds",), 3600.0),
    "joules": Cost("joules", ("simulated_joules",), 1.0),
    "work": Cost("client-rounds", ("cohort_size",), 1.0),
    "wall": Cost("wall seconds", ("wall_seconds",), 1.0),
}
REQUIREMENTS = {
    "hours": "virtual time, from a system model (`system:`)",
    "joules": "the watts of all devices (`system.devices:`)",
}
ACTIVITIES = ("download", "compute", "upload", "waiting")  # what simulated time is spent on


def cumulative_cost(rows: Sequence[Row], cost: str) -> np.ndarray:
    """Cost up to and including each round, (rounds,). The set-up before round 0 costs bytes and time, but is no round.

    Args:
        rows: rows of metrics.jsonl.
        cost: a key of `COSTS`.
    """
    if cost == "round":
        return np.array([rounds_done(row) for row in rows])
    _, columns, unit = COSTS[cost]
    return np.cumsum([sum(row.get(column) or 0 for column in columns) for row in rows]) / unit


def is_counted(rows: Sequence[Row], cost: str) -> bool:
    """Whether a run counted a cost. Energy is counted only if it is known in every round."""
    columns = COSTS[cost].columns
    if cost == "joules":  # a round has no joules if the watts of one of its devices are unknown
        rows = [row for row in rows if "clients_in" in row]
        return bool(rows) and all(column in row for row in rows for column in columns)
    return all(any(column in row for row in rows) for column in columns)
