"""Everything that a finished run leaves and that must not depend on interruptions."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from fl.storage import sums
from fl.storage.clients import ClientStates
from fl.storage.growing import Mark
from fl.storage.run import last_commit, read_metrics
from fl.storage.segments import Segments

CHECKSUM = 8  # bytes of a record's checksum
TIMES = ("wall_seconds", "busy_seconds", "server_seconds", "retried")


def facts(directory: Path) -> dict[str, Any]:
    """Return digests of the model, the metrics without wall-clock times, the tables and the states of clients.

    The baselines of a run are included.

    Raises:
        OSError: a file is missing.
        ConfigError: a file is damaged.
    """
    rows = [{key: value for key, value in row.items() if key not in TIMES} for row in read_metrics(directory)]
    found = {"model": _digest(sums.checked(directory / "model.safetensors").read_bytes()), "metrics": json.dumps(rows)}
    for table in ("ledger", "clients"):
        found[table] = _digest(json.dumps(pq.read_table(sums.checked(directory / f"{table}.parquet")).to_pylist()))
    found["states"] = _states(directory)
    for baseline in sorted((directory / "baselines").glob("*")):
        found |= {f"{baseline.name}: {name}": value for name, value in facts(baseline).items()}
    return found


def difference(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """Name what differs; an empty text if nothing does."""
    return ", ".join(key for key in {**expected, **found} if found.get(key) != expected.get(key))


def _states(directory: Path) -> str:
    """Digest of the clients' states of the last commit, byte by byte; their checksums depend on where they lie."""
    record = last_commit(directory)["clients"]
    if record["log"] is None:
        return ""
    rows = np.fromfile(directory / "clients" / f"index-{record['generation']}.bin", np.int64).reshape(-1, 4)
    states = ClientStates(directory / "clients", int(rows[:, 0].max()) + 1)
    states.restore({**record, "log": Mark(**record["log"])})
    segments, found = Segments(directory / "clients"), hashlib.sha256()
    try:
        assert states.index is not None
        for client, place in enumerate(states.index):
            if place[0] >= 0:
                found.update(b"%d:" % client)
                found.update(segments.window(*map(int, place))[CHECKSUM:])
    finally:
        states.close()
        segments.close()
    return found.hexdigest()


def _digest(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()
