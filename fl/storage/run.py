"""The run directory: everything needed to repeat a run, to resume it and to report it.

    config.yaml          resolved configuration with all defaults: `fl run DIR/config.yaml` repeats the run
    environment.json     versions, machine, command          code/   copies of the user's own files
    metrics.jsonl        one object per committed round
    ledger.parquet       bytes per round, client, direction and group        clients.parquet   metrics per client
    model.safetensors    the final model by tensor names
    checkpoints/         last and best                clients/   states of clients           streams/   growing tables
    profile.json, trace.json   the time spent, if requested

A round is committed by one rename: `checkpoints/last.json` names the tensors and holds the lengths of all growing
files.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import fl
from fl import registry
from fl.storage import checkpoint
from fl.storage.metrics import ClientMetrics
from fl.tensors.trees import Tree

if TYPE_CHECKING:
    from fl.communication.ledger import Ledger

PACKAGES = ("torch", "numpy", "ray", "flwr", "scikit-learn", "pyarrow", "safetensors")


class RunDirectory:
    """Writer of a run directory.

    Args:
        path: The directory; it is created if needed.
        open_ledger: Opens the ledger at a path, cut to a committed length in bytes. The caller passes it, because
            the storage of a run does not know what a ledger counts.
        lengths: Committed lengths of all growing files, as `flush` returned them; None starts a new run.
    """

    def __init__(
        self, path: Path, open_ledger: Callable[[Path, int], Ledger], lengths: Mapping[str, Any] | None = None
    ) -> None:
        self.path = path
        for name in ("checkpoints", "clients", "streams", "scratch"):
            (path / name).mkdir(parents=True, exist_ok=True)
        for leftover in (path / "scratch").iterdir():  # from a killed run
            leftover.unlink()
        lengths = lengths or {"metrics": 0, "ledger": 0, "clients": ()}
        self.metrics = open(path / "metrics.jsonl", "r+b" if lengths["metrics"] else "wb", buffering=0)
        self.metrics.truncate(lengths["metrics"])
        self.metrics.seek(lengths["metrics"])
        self.ledger = open_ledger(path / "streams" / "ledger.arrow", lengths["ledger"])
        self.clients = ClientMetrics(path / "streams", lengths["clients"])

    def configure(self, config: dict[str, Any]) -> None:
        """Write config.yaml."""
        checkpoint.write_atomically(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False))

    def describe(self, facts: dict[str, Any]) -> None:
        """Write environment.json, with `facts` added, and copies of the user's files, once at the start."""
        environment = {"command": sys.argv, **machine(), **facts}
        (self.path / "environment.json").write_text(json.dumps(environment, indent=2) + "\n")
        for file, text in registry.sources().values():
            (self.path / "code").mkdir(exist_ok=True)
            (self.path / "code" / Path(file).name).write_text(text)

    def flush(self) -> dict[str, Any]:
        """Write recorded rows; return the lengths of the growing files."""
        return {"metrics": self.metrics.tell(), "ledger": self.ledger.commit(), "clients": self.clients.commit()}

    def commit(self, round_: int, rows: list[dict[str, Any]], tree: Tree, best: bool) -> None:
        """Commit all rounds up to `round_`.

        Args:
            round_: The last round of the commit.
            rows: Metrics of the rounds since the last commit.
            tree: State from which the run continues.
            best: Also save it as the checkpoint `best`.
        """
        for row in rows:
            self.metrics.write((json.dumps(finite(row), allow_nan=False) + "\n").encode())
        record = {**tree, "lengths": self.flush()}
        if best:
            checkpoint.save(self.path / "checkpoints", "best", record, round_)
        checkpoint.save(self.path / "checkpoints", "last", record, round_)

    def forget(self) -> None:
        """Drop recorded rows that were not written."""
        self.ledger.forget()
        self.clients.forget()

    def export(self) -> None:
        """Write the tables as .parquet."""
        self.ledger.to_parquet(self.path / "ledger.parquet")
        self.clients.to_parquet(self.path / "clients.parquet")

    def close(self) -> None:
        """Close all files."""
        self.metrics.close()
        self.ledger.close()
        self.clients.close()


def finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, with None.

    >>> finite({"loss": float("nan"), "rounds": [1, float("inf")]})
    {'loss': None, 'rounds': [1, None]}
    """
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the metrics of the committed rounds of a run."""
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@functools.cache
def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def machine() -> dict[str, Any]:
    """Describe the machine, Python and the versions of the packages."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "packages": {"fl": fl.__version__} | _versions(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ", 1)[1] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def create_run_directory(name: str, seed: int) -> Path:
    """Create a new directory below runs/. Runs that start in the same second get different ones."""
    base = Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{name}-seed{seed}"
    number, path = 0, base
    while True:
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1
            path = base.with_name(f"{base.name}-{number}")
