"""Metrics per client: one row per round, split and client, and one column per metric.

streams/clients-0.arrow, clients-1.arrow, ...     a new metric needs a new column, and so a new stream
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fl.storage.stream import ArrowStream, column, repeated

FIXED = [("round", pa.int32()), ("split", pa.string()), ("client", pa.int64()), ("num_examples", pa.int64())]


class ClientMetrics:
    """Writer of client metrics in `folder`.

    Args:
        folder: Folder of the streams.
        committed: The last result of `commit`, to continue from.
    """

    def __init__(self, folder: Path, committed: Sequence[Mapping[str, Any]] = ()):
        self.folder = folder
        self.pending: list[tuple[int, str, np.ndarray, np.ndarray, dict[str, Any]]] = []
        self.parts = [dict(part) for part in committed]  # each {"names": metrics, "mark": what is committed}
        self.stream = self._open() if self.parts else None

    def _open(self) -> ArrowStream:
        return ArrowStream(self._path(len(self.parts) - 1), _schema(self.parts[-1]["names"]), self.parts[-1]["mark"])

    def _path(self, part: int) -> Path:
        return self.folder / f"clients-{part}.arrow"

    def add(self, round_: int, split: str, clients: Any, num_examples: Any, metrics: Mapping[str, Any]) -> None:
        """Add the metrics of a split in a round: arrays (n,), one row per client."""
        self.pending.append((round_, split, np.asarray(clients), np.asarray(num_examples), dict(metrics)))

    def commit(self) -> list[dict[str, Any]]:
        """Write the added rows; return the names and the mark of each stream."""
        known = self.parts[-1]["names"] if self.parts else []
        names = list(dict.fromkeys([*known, *(name for *_, metrics in self.pending for name in metrics)]))
        if self.pending and (self.stream is None or names != known):
            self.close()
            self.parts.append({"names": names, "mark": None})
            self.stream = self._open()
        for round_, split, clients, num_examples, metrics in self.pending:
            n, stream = len(clients), self.stream
            assert stream is not None
            columns = [column(np.full(n, round_, np.int32)), repeated(split, n)]
            columns += [column(ids.astype(np.int64)) for ids in (clients, num_examples)]
            missing = pa.nulls(n, pa.float64())
            columns += [column(np.asarray(metrics[name], np.float64)) if name in metrics else missing for name in names]
            self.parts[-1]["mark"] = stream.append(pa.record_batch(columns, schema=_schema(names)))
        self.pending = []
        return [dict(part) for part in self.parts]

    def cut(self) -> None:
        """Cut off what the open stream holds after its mark."""
        if self.stream is not None:
            self.stream.cut()

    def forget(self) -> None:
        """Drop the rows added since the last commit."""
        self.pending = []

    def to_parquet(self, out: Path) -> None:
        """Write all committed rows as one table."""
        tables = [ArrowStream.read(self._path(i), _schema(part["names"])) for i, part in enumerate(self.parts)]
        table = pa.concat_tables([pa.Table.from_batches([], _schema([])), *tables], promote_options="default")
        pq.write_table(table, out, compression="zstd")

    def close(self) -> None:
        """Close the open stream."""
        if self.stream is not None:
            self.stream.close()


def _schema(names: Sequence[str]) -> pa.Schema:
    return pa.schema([*FIXED, *((name, pa.float64()) for name in names)])
