"""Communication volume of runs from their ledgers: a row per direction, group, round, or client statistic.

    payload   raw tensors; of sparse groups the values alone
    encoded   after the codec, with positions and headers
    wire      as Flower messages                     all three summed over clients, in MB of 10^6 bytes

Arrow does the sums, without a Python loop over rows (measured in docs/costs.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fl.communication import ledger
from fl.data.archives import read_parquet
from fl.report.variants import run_directories
from fl.storage import sums
from fl.storage.run import read_metrics

Row = dict[str, Any]
DIRECTIONS = ("up", "down")
SIZES = ("payload", "encoded", "wire")
LARGEST_CLIENTS = 5  # clients that `by_client` lists
STATISTICS: dict[str, Callable[[np.ndarray], float]] = {
    "min": np.min,
    "median": np.median,
    "mean": np.mean,
    "max": np.max,
}


def read(directory: Path, columns: Iterable[str]) -> pa.Table:
    """Columns of a run's ledger: of the Parquet file that a finished run has, else of the growing stream."""
    columns = list(columns)
    done, growing = directory / "ledger.parquet", directory / "streams" / "ledger.arrow"
    if done.is_file() and (sums.present(directory) or not growing.is_file()):
        words = [name for name in ("direction", "group") if name in columns]
        return read_parquet(sums.checked(done), columns=columns, words=words).unify_dictionaries()
    if not growing.is_file():
        raise ValueError(f"{directory} has no ledger: neither ledger.parquet nor streams/ledger.arrow")
    return ledger.read(growing).select(columns)


def totals(directory: Path, *keys: str) -> dict[str, np.ndarray]:
    """Sums over the messages with equal `keys`: column -> (n,), sorted by keys.

    Columns are the keys, the number of `messages`, and the MB of each of `SIZES`.
    """
    table = read(directory, [*keys, *(f"{size}_bytes" for size in SIZES)])
    sums = [(f"{size}_bytes", "sum") for size in SIZES]
    found = table.group_by(list(keys)).aggregate([*sums, ([], "count_all")])
    for i, key in enumerate(found.column_names):
        if pa.types.is_dictionary(found[key].type):
            found = found.set_column(i, key, found[key].cast(pa.string()))
    found = found.sort_by([(key, "ascending") for key in keys])
    columns = {key: found[key].to_numpy() for key in keys} | {"messages": found["count_all"].to_numpy()}
    return columns | {size: found[f"{size}_bytes_sum"].to_numpy() / 1e6 for size in SIZES}


def by_group(directory: Path) -> list[Row]:
    """A row per direction and group; `ratio` is payload / encoded."""
    return _message_rows(totals(directory, "direction", "group"), "direction", "group")


def by_direction(directory: Path) -> list[Row]:
    """A row for up, for down, and for down if what all clients receive is sent once (multicast)."""
    rows = _message_rows(totals(directory, "direction"), "direction")
    once = [row["downlink_multicast_bytes"] for row in read_metrics(directory) if "downlink_multicast_bytes" in row]
    if rows and once:
        rows.append(dict.fromkeys(rows[0]) | {"direction": "down (multicast)", "encoded MB": sum(once) / 1e6})
    return rows


def _message_rows(found: dict[str, np.ndarray], *keys: str) -> list[Row]:
    rows = []
    for i in range(len(found["messages"])):
        row: Row = {key: str(found[key][i]) for key in keys} | {"messages": int(found["messages"][i])}
        row |= {f"{size} MB": float(found[size][i]) for size in SIZES}
        row["ratio"] = row["payload MB"] / row["encoded MB"] if row["encoded MB"] else None
        rows.append(row | {"encoded kB each": 1000 * row["encoded MB"] / row["messages"]})
    return rows


def by_round(directory: Path) -> list[Row]:
    """A row per round, with cumulative MB per direction; round -1 is the set-up. Multicast as in `by_direction`."""
    found = totals(directory, "round", "direction")
    rounds, index = np.unique(found["round"], return_inverse=True)
    columns = _by_direction_and_size(found, index, len(rounds))
    once = {
        row["round"]: row["downlink_multicast_bytes"]
        for row in read_metrics(directory)
        if "downlink_multicast_bytes" in row
    }
    cumulative = {direction: np.cumsum(columns[f"{direction} encoded MB"]) for direction in DIRECTIONS}
    rows = []
    for i, number in enumerate(rounds.tolist()):
        row: Row = {"round": number} | {name: float(column[i]) for name, column in columns.items()}
        row["multicast MB"] = once[number] / 1e6 if number in once else None
        rows.append(row | {f"{direction} so far": float(cumulative[direction][i]) for direction in DIRECTIONS})
    return rows


def by_client(directory: Path) -> list[Row]:
    """Rows min, median, mean and max over the clients with any message, then the clients with the most MB."""
    found = totals(directory, "client", "direction")
    clients, index = np.unique(found["client"], return_inverse=True)
    columns = _by_direction_and_size(found, index, len(clients))
    if not len(clients):
        return []
    rows = [
        {"name": name} | {key: float(statistic(x)) for key, x in columns.items()}
        for name, statistic in STATISTICS.items()
    ]
    volume = columns["up encoded MB"] + columns["down encoded MB"]
    largest = np.argsort(-volume, kind="stable")[:LARGEST_CLIENTS]
    return rows + [{"name": f"client {clients[i]}"} | {key: float(x[i]) for key, x in columns.items()} for i in largest]


def _by_direction_and_size(found: dict[str, np.ndarray], index: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """Column such as "up encoded MB" -> (n,): totals placed at `index`, 0 without a message."""
    columns = {}
    for direction in DIRECTIONS:
        selected = found["direction"] == direction
        for size in SIZES:
            columns[f"{direction} {size} MB"] = column = np.zeros(n)
            column[index[selected]] = found[size][selected]
    return columns


BY = {"group": by_group, "direction": by_direction, "round": by_round, "client": by_client}


def tabulate(directories: Iterable[Path], by: str) -> list[Row]:
    """One table of all runs in the directories. With several runs, the first column names the run.

    Args:
        directories: run directories, or folders of run directories.
        by: a key of `BY`.
    """
    runs = [run for directory in directories for run in run_directories(directory)]
    tables = [(run, BY[by](run)) for run in runs]
    for run, rows in tables:
        if not rows:
            raise ValueError(f"{run}: nothing was sent")
    return [({"run": str(run)} if len(runs) > 1 else {}) | row for run, rows in tables for row in rows]
