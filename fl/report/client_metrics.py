"""Metrics of each client, from clients.parquet."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fl.data.archives import read_parquet
from fl.storage import sums


def clients(directory: str | Path, split: str = "test") -> dict[str, np.ndarray]:
    """Metrics of each client at the last evaluation of a finished run: name -> (clients,), sorted by client.

    Columns are client, num_examples and the metrics that were measured.

    Args:
        directory: run directory.
        split: rows that were evaluated, "test" or "val".
    """
    import pyarrow.compute as pc

    found = read_parquet(sums.checked(clients_file(directory)), filters=pc.field("split") == split)
    if not len(found):
        raise ValueError(
            f"{directory}: no client was evaluated on its {split} rows; splits.{split} and evaluation say what is"
        )
    last = found.filter(pc.equal(found["round"], pc.max(found["round"])))
    last = last.sort_by("client").drop_columns(["round", "split"])
    return {name: last[name].to_numpy() for name in last.column_names if last[name].null_count < len(last)}


def clients_file(directory: str | Path) -> Path:
    """The run's clients.parquet; a ValueError if it is not there."""
    file = Path(directory) / "clients.parquet"
    if not file.is_file():
        raise ValueError(
            f"{directory} has no clients.parquet; a run writes it when it ends (resume it with `fl resume`)"
        )
    return file


def client_metric_name(metrics: Sequence[str]) -> str:
    """The metric of single clients behind the first `clients/...` metric; "accuracy" without one.

    >>> client_metric_name(["eval/loss", "clients/loss_worst10@best"])
    'loss'
    """
    found = next((metric for metric in metrics if metric.startswith("clients/")), "clients/accuracy")
    return re.sub("_(mean|weighted|std|worst10|gini)$", "", found.partition("@")[0].removeprefix("clients/"))
