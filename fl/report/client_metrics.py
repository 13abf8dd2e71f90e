"""Metrics of each client: clients.parquet of a finished run, the growing streams of an unfinished one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fl.data.archives import read_parquet
from fl.storage import sums
from fl.storage.stream import ArrowStream, repeated

STREAMS = "streams/clients-*.arrow"


def clients(directory: str | Path, split: str = "test") -> dict[str, np.ndarray]:
    """Metrics of each client at the last evaluation of a run: name -> (clients,), sorted by client.

    Columns are client, num_examples and the metrics that were measured.

    Args:
        directory: run directory.
        split: rows that were evaluated, "test" or "val".
    """
    import pyarrow.compute as pc

    found = read(directory, split)
    if not len(found):
        raise ValueError(
            f"{directory}: no client was evaluated on its {split} rows; splits.{split} and evaluation say what is"
        )
    last = found.filter(pc.equal(found["round"], pc.max(found["round"])))
    last = last.sort_by("client").drop_columns(["round", "split"])
    return {name: last[name].to_numpy() for name in last.column_names if last[name].null_count < len(last)}


def read(directory: str | Path, split: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Rows of a split, one for each evaluation (of "train": each training) and client.

    Args:
        directory: run directory.
        split: "train", "val", "test", or another that the run has written.
        columns: columns to read; None reads all, and those that the run does not have are left out.

    Raises:
        ValueError: the run has written no metrics of clients.
    """
    import pyarrow.compute as pc

    directory, wanted = Path(directory), repeated(split, 1)[0]
    file, streams = directory / "clients.parquet", sorted(directory.glob(STREAMS))
    if file.is_file() and (sums.present(directory) or not streams):
        names = pq.read_schema(sums.checked(file)).names
        known = names if columns is None else [name for name in ("split", *columns) if name in names]
        table = read_parquet(file, columns=known, words=["split"])
    elif streams:
        parts = [ArrowStream.read(path, _schema(path)) for path in streams]
        table = pa.concat_tables(parts, promote_options="default")
    else:
        raise ValueError(f"{directory} has no clients.parquet; a run writes it when it ends (see `fl resume`)")
    table = table.filter(pc.equal(table["split"], wanted))
    return table if columns is None else table.select([name for name in columns if name in table.column_names])


def _schema(stream: Path) -> pa.Schema:
    """The schema that a stream begins with; an empty one if the stream is cut off before its end."""
    with pa.OSFile(str(stream)) as file:
        try:
            return pa.ipc.open_stream(file).schema
        except (pa.ArrowInvalid, OSError):
            return pa.schema([("round", pa.int32()), ("split", pa.string())])


def client_metric_name(metrics: Sequence[str]) -> str:
    """The metric of single clients behind the first `clients/...` metric; "accuracy" without one.

    >>> client_metric_name(["eval/loss", "clients/loss_worst10@best"])
    'loss'
    """
    found = next((metric for metric in metrics if metric.startswith("clients/")), "clients/accuracy")
    return re.sub("_(mean|weighted|std|worst10|gini)$", "", found.partition("@")[0].removeprefix("clients/"))
