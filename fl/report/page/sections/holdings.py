"""Who holds what: rows of each client from the run directory, labels and columns from the data if they may be read."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fl.report.charts import Bars, Heatmap
from fl.report.client_metrics import read
from fl.report.page.runs import Runs, if_written
from fl.report.page.section import Block, Section, Table

if TYPE_CHECKING:
    from fl.data.dataset import Dataset
    from fl.data.partition import Partition

SPLITS = {"train": "training rows", "val": "validation rows", "test": "test rows"}
MOST_CLIENTS = 200  # bars of a chart
MOST_LABELS = 40
MOST_PARTITIONS = 4
HOW = "fl report --data also shows the labels of each client: it loads the data sets and divides them again."


def holdings(runs: Runs) -> Section | None:
    """Rows of each client, for each partition that the runs use."""
    blocks: list[Block] = []
    for name, directory in _partitions(runs):
        found = runs.load(directory) if runs.load else None
        if found is not None and found[0].parties:
            continue  # all parties hold the same rows; see `vertical_split`
        charts = _from_data(name, *found) if found is not None else _from_run(name, directory)
        blocks += charts
    if blocks and not runs.load:
        blocks.append(HOW)
    return Section("Who holds what", blocks) if blocks else None


def _partitions(runs: Runs) -> Iterator[tuple[str, Path]]:
    """Yield (names of the variants, a run directory) of each division of the data among clients, at most four."""
    groups: dict[str, tuple[list[str], Path]] = {}
    for variant, environments in zip(runs.variants, runs.environments):
        path = variant.directories[0]
        known = environments[0].get("partition_sha256")
        key = str((known, environments[0].get("data_sha256"))) if known else str(path)
        groups.setdefault(key, ([], path))[0].append(variant.name)
    for names, path in list(groups.values())[:MOST_PARTITIONS]:
        yield ", ".join(names), path


def _from_run(name: str, directory: Path) -> list[Block]:
    """Rows that each client trained on or was evaluated on."""
    rows: dict[str, dict[int, int]] = {}
    for split, title in SPLITS.items():
        found = if_written(partial(read, directory, split, ["client", "num_examples"]))
        if found is not None and len(found):
            rows[title] = dict(zip(found["client"].to_pylist(), found["num_examples"].to_pylist()))
    if not rows:
        return []
    clients = np.array(sorted(set().union(*rows.values())))
    counts = {title: np.array([of.get(int(c), 0) for c in clients]) for title, of in rows.items()}
    note = f"Of {directory.name}: rows with which clients were seen in training and evaluation."
    return [_bars(f"Rows of each client: {name}", note, clients, counts)]


def _bars(title: str, note: str, clients: np.ndarray, counts: dict[str, np.ndarray]) -> Bars:
    """Bars of the clients, the largest first; of more than 200 clients, 200 evenly spaced in this order."""
    order = np.argsort(-np.sum(list(counts.values()), 0), kind="stable")
    shown = order[np.unique(np.linspace(0, len(order) - 1, min(len(order), MOST_CLIENTS)).astype(np.int64))]
    if len(shown) < len(order):
        note += f" {len(shown)} of {len(order)} clients, evenly spaced by size."
    parts = {part: values[shown] for part, values in counts.items()}
    return Bars(
        title=title, note=note, names=[str(c) for c in clients[shown]], parts=parts, x_label="rows", upright=True
    )


# -- from the data ----------------------------------------------------------------------------------------------------
def _from_data(name: str, dataset: Dataset, partition: Partition) -> list[Block]:
    """Labels of each client, and the statistics of `fl partition`."""
    from fl.data.partition_stats import held, statistics

    labels = dataset.train.get("y")
    stats = Table([_flat(statistics(partition, labels))], f"Statistics: {name}")
    sizes, clients = np.diff(partition.offsets), np.arange(partition.num_clients)
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iu":
        return [_bars(f"Rows of each client: {name}", "", clients, {"rows": sizes}), stats]
    classes, client, which, rows = held(labels, partition)
    counts = np.zeros((len(clients), len(classes)), np.int64)
    if counts.size <= 10_000_000:
        counts[client, which] = rows
    if len(classes) > MOST_LABELS or counts.size > 10_000_000:
        return [_bars(f"Rows of each client: {name}", "", clients, {"rows": sizes}), stats]
    parts = {f"label {label}": counts[:, k] for k, label in enumerate(classes)}
    charts: list[Block] = [_bars(f"Labels of each client: {name}", "", clients, parts)]
    if len(clients) <= MOST_LABELS:
        charts.append(
            Heatmap(
                title=f"Rows by label: {name}",
                values=counts.T.astype(float),
                x_label="client",
                y_label="label",
                y_names=[str(label) for label in classes],
                low=0,
                high=float(counts.max()),
            )
        )
    return [*charts, stats]


def _flat(stats: dict[str, Any]) -> dict[str, Any]:
    """One row: numbers unchanged; minimum, median and maximum as text."""
    return {
        name: f"{value['min']} .. {value['median']:g} .. {value['max']}" if isinstance(value, dict) else value
        for name, value in stats.items()
    }


# -- columns ----------------------------------------------------------------------------------------------------------
def vertical_split(runs: Runs) -> Section | None:
    """Columns of the parties of a vertical partition, and the bytes of each party."""
    blocks: list[Block] = []
    for variant in runs.variants:
        partition = variant.configs[0].get("partition") or {}
        if "parties" not in partition:
            continue
        blocks.append(_party_bytes(variant.name, variant.directories[0]))
        if runs.load:
            blocks += _party_columns(variant.name, *runs.load(variant.directories[0]))
    if blocks and not runs.load:
        blocks.append("fl report --data also shows the columns of each party, their importance and correlations.")
    return Section("Vertical split", blocks) if blocks else None


def _party_bytes(name: str, directory: Path) -> Bars:
    from fl.report.ledger import totals

    found = totals(directory, "client", "direction")
    parties = np.unique(found["client"])
    parts = {way: np.zeros(len(parties)) for way in ("up", "down")}
    for client, way, size in zip(found["client"], found["direction"], found["encoded"]):
        parts[str(way)][np.searchsorted(parties, client)] = size
    note = "Encoded bytes of a whole run. The active party holds the labels and sends nothing to itself."
    names = [f"client {client}" for client in parties]
    return Bars(title=f"MB of each party: {name}", note=note, names=names, parts=parts, x_label="MB")


def _party_columns(name: str, dataset: Dataset, partition: Partition) -> list[Block]:
    from fl.data.party_stats import PartyStats

    if not dataset.parties:
        return []
    stats = PartyStats.of(dataset, partition)
    names = ["active party", *(f"client {i}" for i in range(len(stats.columns) - 1))]
    note = f"Share in a linear model's Shapley values. alpha = {stats.alpha:.3g}, Icor = {stats.icor:.3g}."
    labels = [f"{party}: {len(own)} columns" for party, own in zip(names, stats.columns)]
    bars = Bars(
        title=f"Importance: {name}", note=note, names=labels, parts={"importance": stats.importance}, x_label="share"
    )
    matrix = Heatmap(
        title=f"Correlations of columns: {name}",
        note="Rank correlations; columns are ordered by party.",
        values=stats.correlation,
        x_label="column, ordered by party",
        y_label="column, ordered by party",
        low=-1,
        high=1,
        signed=True,
    )
    return [bars, matrix]
