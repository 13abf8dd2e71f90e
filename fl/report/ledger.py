"""What runs sent, as their ledgers say: a row per direction, group, round, or client.

    payload   raw tensors, of sparse ones the values     encoded   after the codec, positions and headers with it
    wire      as Flower messages                         each the sum over all clients, in MB of 10^6 bytes

Arrow adds up; nothing goes over the rows of a ledger one by one (measured in docs/costs.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fl.communication import ledger
from fl.report.compare import runs_in
from fl.storage.run import read_metrics

Row = dict[str, Any]
DIRECTIONS = ("up", "down")
SIZES = ("payload", "encoded", "wire")
TOP = 5  # clients that are named


def read(directory: Path, columns: Iterable[str]) -> pa.Table:
    """Columns of a run's ledger, of the file that is newer: the parquet of its end or the stream that it grows by."""
    done, growing = directory / "ledger.parquet", directory / "streams" / "ledger.arrow"
    if done.is_file() and not (growing.is_file() and growing.stat().st_mtime > done.stat().st_mtime):
        words = [name for name in ("direction", "group") if name in columns]
        return pq.read_table(done, columns=list(columns), read_dictionary=words).unify_dictionaries()
    if not growing.is_file():
        raise ValueError(f"{directory} has no ledger: neither ledger.parquet nor streams/ledger.arrow")
    return ledger.read(growing).select(list(columns))


def sums(directory: Path, *keys: str) -> dict[str, np.ndarray]:
    """Column -> (n,): the keys, each combination once, in order; how many `messages`, and the MB of each of SIZES."""
    table = read(directory, [*keys, *(f"{size}_bytes" for size in SIZES)])
    figures = [(f"{size}_bytes", "sum") for size in SIZES]
    found = table.group_by(list(keys)).aggregate([*figures, ([], "count_all")])
    for i, key in enumerate(found.column_names):
        if pa.types.is_dictionary(found[key].type):
            found = found.set_column(i, key, found[key].cast(pa.string()))
    found = found.sort_by([(key, "ascending") for key in keys])
    columns = {key: found[key].to_numpy() for key in keys} | {"messages": found["count_all"].to_numpy()}
    return columns | {size: found[f"{size}_bytes_sum"].to_numpy() / 1e6 for size in SIZES}


def by_group(directory: Path) -> list[Row]:
    """Both directions of each group; `ratio`: how many times less than the payload was sent, encoded."""
    return _messages(sums(directory, "direction", "group"), "direction", "group")


def by_direction(directory: Path) -> list[Row]:
    """Up, down, and down if what all receive is sent once."""
    rows = _messages(sums(directory, "direction"), "direction")
    once = [row["downlink_multicast_bytes"] for row in read_metrics(directory) if "downlink_multicast_bytes" in row]
    if rows and once:
        rows.append(dict.fromkeys(rows[0]) | {"direction": "down (multicast)", "encoded MB": sum(once) / 1e6})
    return rows


def _messages(found: dict[str, np.ndarray], *keys: str) -> list[Row]:
    rows = []
    for i in range(len(found["messages"])):
        row: Row = {key: str(found[key][i]) for key in keys} | {"messages": int(found["messages"][i])}
        row |= {f"{size} MB": float(found[size][i]) for size in SIZES}
        row["ratio"] = row["payload MB"] / row["encoded MB"] if row["encoded MB"] else None
        rows.append(row | {"encoded kB each": 1000 * row["encoded MB"] / row["messages"]})
    return rows


def by_round(directory: Path) -> list[Row]:
    """A row per round, -1 for what came before the first, with the MB up to and with it; `multicast`: see `by_direction`."""
    found = sums(directory, "round", "direction")
    rounds, place = np.unique(found["round"], return_inverse=True)
    columns = _sides(found, place, len(rounds))
    once = {
        row["round"]: row["downlink_multicast_bytes"]
        for row in read_metrics(directory)
        if "downlink_multicast_bytes" in row
    }
    rows, so_far = [], {way: np.cumsum(columns[f"{way} encoded MB"]) for way in DIRECTIONS}
    for i, number in enumerate(rounds.tolist()):
        row: Row = {"round": number} | {name: float(column[i]) for name, column in columns.items()}
        row["multicast MB"] = once[number] / 1e6 if number in once else None
        rows.append(row | {f"{way} so far": float(so_far[way][i]) for way in DIRECTIONS})
    return rows


def by_client(directory: Path) -> list[Row]:
    """Over the clients that anything was sent to or from, each column for itself; then those who sent and received most."""
    found = sums(directory, "client", "direction")
    clients, place = np.unique(found["client"], return_inverse=True)
    columns = _sides(found, place, len(clients))
    if not len(clients):
        return []
    kinds: dict[str, Callable[[np.ndarray], float]] = {
        "min": np.min,
        "median": np.median,
        "mean": np.mean,
        "max": np.max,
    }
    rows = [{"name": name} | {key: float(of(x)) for key, x in columns.items()} for name, of in kinds.items()]
    most = np.argsort(-(columns["up encoded MB"] + columns["down encoded MB"]), kind="stable")[:TOP]
    return rows + [{"name": f"client {clients[i]}"} | {key: float(x[i]) for key, x in columns.items()} for i in most]


def _sides(found: dict[str, np.ndarray], place: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """Column "up encoded MB" -> (n,): sums by direction, put where `place` says, 0 where nothing was sent."""
    columns = {}
    for way in DIRECTIONS:
        of = found["direction"] == way
        for size in SIZES:
            columns[f"{way} {size} MB"] = column = np.zeros(n)
            column[place[of]] = found[size][of]
    return columns


BY = {"group": by_group, "direction": by_direction, "round": by_round, "client": by_client}


def tabulate(directories: Iterable[Path], by: str) -> list[Row]:
    """One table of all runs in the directories; of more than one run, the first column says which."""
    runs = [run for directory in directories for run in runs_in(directory)]
    tables = [(run, BY[by](run)) for run in runs]
    for run, rows in tables:
        if not rows:
            raise ValueError(f"{run}: nothing was sent")
    return [({"run": str(run)} if len(runs) > 1 else {}) | row for run, rows in tables for row in rows]
