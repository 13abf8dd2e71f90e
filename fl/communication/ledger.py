"""The ledger: measured bytes of a run, one row per round, exchange, client, direction and group.

    payload_bytes   the raw tensors; for sparse groups their values only
    encoded_bytes   after the codec
    wire_bytes      as a Flower message, see `fl.communication.wire`

    ledger.record(...)   any number of times
    ledger.commit()      returns the mark of the file, which is stored with the round's commit
    ledger.totals(round_)   uplink_bytes, downlink_bytes, ... for the metrics of the round

Messages between clients and the server have the tier "client". Messages between servers have another tier, for example
"edge" between edge servers and a cloud. Their `client` column holds the number of the lower server, and their totals
are separate: edge_uplink_bytes, edge_downlink_bytes.

A shared group of a broadcast has one row per receiving client. The cost with multicast (a shared group counts once, and
each client's own groups count as usual) has no row. It is the total `downlink_multicast_bytes` of the round.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fl.checks import one_of
from fl.storage.growing import Mark
from fl.storage.stream import ArrowStream, column, repeated

SCHEMA = pa.schema(
    {
        "round": pa.int32(),
        "exchange": pa.int16(),
        "client": pa.int64(),
        "direction": pa.string(),  # "up" or "down"; a dictionary column would cost an extra Arrow batch
        "group": pa.string(),
        "payload_bytes": pa.int64(),
        "encoded_bytes": pa.int64(),
        "wire_bytes": pa.int64(),
        "tier": pa.string(),
    }
)
TOTALS = ("uplink_bytes", "downlink_bytes", "uplink_wire_bytes", "downlink_wire_bytes", "downlink_multicast_bytes")


class Ledger:
    """The ledger of one run, written to an Arrow stream.

    Args:
        path: The file.
        mark: What is committed, see `GrowingFile`; None starts a new ledger.
    """

    def __init__(self, path: str | Path, mark: Mark | None = None) -> None:
        self.path = Path(path)
        self._stream = ArrowStream(path, SCHEMA, mark)
        self._pending: list[tuple[tuple, tuple]] = []  # (constant columns, clients and three kinds of bytes)
        self._totals: dict[int, dict[str, int]] = {}  # of the latest round only

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
        """Add one row per client.

        Args:
            round_: Round, counted from 0.
            exchange: Exchange within the round, counted from 0.
            direction: "up" or "down".
            group: Name of the group of tensors.
            clients: Client ids, shape (C,).
            payload: Bytes of the raw tensors, a number or one per client.
            encoded: Bytes after the codec, a number or one per client.
            wire: Bytes as a Flower message, a number or one per client.
            tier: "client", or the name of a tier of servers.
        """
        one_of(("down", "up"), direction=direction)
        self._pending.append(
            ((round_, exchange, direction, group, tier), (np.asarray(clients, np.int64), payload, encoded, wire))
        )
        totals = self._totals_of(round_)
        prefix = "" if tier == "client" else f"{tier}_"
        for kind, counts in (("bytes", encoded), ("wire_bytes", wire)):
            name = f"{prefix}{direction}link_{kind}"
            total = counts.sum() if isinstance(counts, np.ndarray) and counts.ndim else counts * len(clients)
            totals[name] = totals.get(name, 0) + int(total)

    def multicast(self, round_: int, encoded: int) -> None:
        """Add `encoded` bytes to the round's total with multicast: a shared group once, each client's own groups."""
        self._totals_of(round_)["downlink_multicast_bytes"] += encoded

    def totals(self, round_: int) -> dict[str, int]:
        """Return the sums over a round's rows, and its multicast bytes; zeros for all but the latest recorded round."""
        return dict(self._totals.get(round_) or dict.fromkeys(TOTALS, 0))

    def _totals_of(self, round_: int) -> dict[str, int]:
        if round_ not in self._totals:
            self._totals = {round_: dict.fromkeys(TOTALS, 0)}
        return self._totals[round_]

    def commit(self) -> Mark:
        """Write all rows since the last commit as one batch. Returns what the file then holds."""
        if self._pending:
            constants, arrays = zip(*self._pending)
            round_, exchange, *texts = zip(*constants)
            counts = [len(clients) for clients, *_ in arrays]
            numbers = [column(np.repeat(np.array(v, k), counts)) for v, k in ((round_, np.int32), (exchange, np.int16))]
            direction, group, tier = (pa.concat_arrays(list(map(repeated, of, counts))) for of in texts)
            clients, *bytes_ = (column(np.concatenate(list(map(_of_each, of, counts)))) for of in zip(*arrays))
            columns = [*numbers, clients, direction, group, *bytes_, tier]
            self._stream.append(pa.record_batch(columns, schema=SCHEMA))
            self._pending = []
        return self._stream.mark

    def cut(self) -> None:
        """Cut off what the file holds after its mark."""
        self._stream.cut()

    def forget(self) -> None:
        """Drop all rows since the last commit."""
        self._pending, self._totals = [], {}

    def to_parquet(self, out: str | Path) -> None:
        """Write all committed rows as a Parquet file. It is small, because most columns repeat their values."""
        pq.write_table(read(self.path), out, compression="zstd")

    def close(self) -> None:
        """Close the file. Rows that were not committed are lost."""
        self._stream.close()


def _of_each(number: int | np.ndarray, count: int) -> np.ndarray:
    """Return a column of `count` rows, from a number for all of them or from one number per row."""
    return np.asarray(number, np.int64) if np.ndim(number) else np.full(count, number, np.int64)


def read(path: str | Path) -> pa.Table:
    """Read all committed rows of the ledger at `path`. An incomplete batch at its end is left out."""
    return ArrowStream.read(path, SCHEMA)
