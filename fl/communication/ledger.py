"""The ledger: measured bytes per round, exchange, client, direction and group, one row each.

    payload_bytes   raw tensors, of sparse ones the values     encoded_bytes   after the codec     wire_bytes   as a Flower message

    ledger.record(...) as often as needed;   ledger.commit() -> the file's length, kept with the round's commit
    ledger.totals(round_) -> uplink_bytes, ... for the round's metrics

Clients' messages are of the tier "client". Servers among themselves have others ("edge": between edges and a cloud); `client` then
is the lower server's number, and totals are apart: edge_uplink_bytes, edge_downlink_bytes.

A broadcast's shared groups have a row for every receiving client; what they would take if sent once to all, beside each client's
own, is in no row, but in the round's total `downlink_multicast_bytes` (`multicast`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fl.storage.stream import ArrowStream, column, repeated

SCHEMA = pa.schema(
    {
        "round": pa.int32(),
        "exchange": pa.int16(),
        "client": pa.int64(),
        "direction": pa.string(),  # "up" or "down"; strings, as Arrow would need a batch of its own for a dictionary
        "group": pa.string(),
        "payload_bytes": pa.int64(),
        "encoded_bytes": pa.int64(),
        "wire_bytes": pa.int64(),
        "tier": pa.string(),
    }
)
TOTALS = ("uplink_bytes", "downlink_bytes", "uplink_wire_bytes", "downlink_wire_bytes", "downlink_multicast_bytes")


class Ledger:
    """The ledger of a run, begun anew at `path`, or gone on with at a committed length (`Ledger.open`)."""

    def __init__(self, path: str | Path, length: int = 0):
        self._stream = ArrowStream(path, SCHEMA, length)
        self._pending: list[tuple] = []  # (constant columns, arrays)
        self._totals: dict[int, dict[str, int]] = {}  # of the latest round only

    @classmethod
    def open(cls, path: str | Path, length: int) -> Ledger:
        """The ledger at `path`, cut back to a committed length."""
        return cls(path, length)

    def record(
        self,
        round_: int,
        exchange: int,
        direction: str,
        group: str,
        clients: np.ndarray,
        payload: int | np.ndarray,
        encoded: int | np.ndarray,
        wire: int | np.ndarray,
        tier: str = "client",
    ) -> None:
        """One row per client; the bytes are numbers or arrays (C,)."""
        if direction not in ("up", "down"):
            raise ValueError(f"direction: {direction!r} is not one of ['down', 'up']")
        figures = [np.broadcast_to(np.asarray(x, np.int64), len(clients)) for x in (payload, encoded, wire)]
        self._pending.append(((round_, exchange, direction, group, tier), [np.asarray(clients, np.int64), *figures]))
        totals = self._of(round_)
        of_tier = "" if tier == "client" else f"{tier}_"
        for name, figure in (("bytes", figures[1]), ("wire_bytes", figures[2])):
            name = f"{of_tier}{direction}link_{name}"
            totals[name] = totals.get(name, 0) + int(figure.sum())

    def multicast(self, round_: int, encoded: int) -> None:
        """`encoded` bytes that multicast takes: a shared group once for all who receive it, and what each client has of its own."""
        self._of(round_)["downlink_multicast_bytes"] += encoded

    def totals(self, round_: int) -> dict[str, int]:
        """Sums over the rows of a round (the latest recorded; others give zeros) and its multicast bytes."""
        return dict(self._totals.get(round_) or dict.fromkeys(TOTALS, 0))

    def _of(self, round_: int) -> dict[str, int]:
        if round_ not in self._totals:
            self._totals = {round_: dict.fromkeys(TOTALS, 0)}
        return self._totals[round_]

    def commit(self) -> int:
        """Write what was recorded since the last commit, as one batch; returns the file's length."""
        if self._pending:
            constants, arrays = zip(*self._pending)
            round_, exchange, *texts = zip(*constants)
            counts = [len(clients) for clients, *_ in arrays]
            numbers = [column(np.repeat(np.array(v, k), counts)) for v, k in ((round_, np.int32), (exchange, np.int16))]
            direction, group, tier = (pa.concat_arrays(list(map(repeated, of, counts))) for of in texts)
            clients, *figures = (column(np.concatenate(pieces)) for pieces in zip(*arrays))
            columns = [*numbers, clients, direction, group, *figures, tier]
            self._stream.append(pa.record_batch(columns, schema=SCHEMA))
            self._pending = []
        return self._stream.length

    def forget(self) -> None:
        """Drop what was recorded since the last commit."""
        self._pending, self._totals = [], {}

    def close(self) -> None:
        self._stream.close()


def read(path: str | Path) -> pa.Table:
    """All committed rows of the ledger at `path`; a torn tail is left out."""
    return ArrowStream.read(path, SCHEMA)


def to_parquet(path: str | Path, out: str | Path) -> None:
    """The ledger at `path` as a parquet file (small: nearly all columns repeat)."""
    pq.write_table(read(path), out, compression="zstd")
