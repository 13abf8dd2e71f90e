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

import contextlib
import functools
import importlib.metadata
import json
import math
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import fl
from fl.errors import ConfigError
from fl.storage import checkpoint, files
from fl.storage.metrics import ClientMetrics
from fl.tensors.params import Params
from fl.tensors.trees import Tree

if TYPE_CHECKING:
    from fl.communication.ledger import Ledger

LONGEST_NAME = 50  # characters of a method's name in the name of a run directory
RETRIES = 5  # to read a checkpoint that a live run replaces
PACKAGES = ("torch", "numpy", "numba", "ray", "flwr", "scikit-learn", "pyarrow", "safetensors")


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
        path.mkdir(parents=True, exist_ok=True)
        for name in ("checkpoints", "clients", "streams", "scratch"):
            files.make_folder(path / name)
        for leftover in (path / "scratch").glob("*.seg"):  # from a killed run
            files.remove(leftover)
        lengths = lengths or {"metrics": 0, "ledger": 0, "clients": ()}
        with contextlib.ExitStack() as opened:
            self.metrics = files.open_at(path / "metrics.jsonl", lengths["metrics"])
            opened.callback(self.metrics.close)
            self.ledger = open_ledger(path / "streams" / "ledger.arrow", lengths["ledger"])
            opened.callback(self.ledger.close)
            self.clients = ClientMetrics(path / "streams", lengths["clients"])
            opened.callback(self.clients.close)
            self._opened = opened.pop_all()

    def configure(self, config: dict[str, Any]) -> None:
        """Write config.yaml."""
        files.write_file(self.path / "config.yaml", yaml.safe_dump(config, sort_keys=False))

    def describe(self, facts: dict[str, Any], sources: Mapping[str, str] = {}) -> None:
        """Write environment.json, with `facts` added, and copies of the user's files: path -> text."""
        environment = {"command": sys.argv, **machine(), **facts}
        files.write_file(self.path / "environment.json", json.dumps(environment, indent=2) + "\n")
        if sources:
            files.make_folder(self.path / "code")
        copies: dict[str, str] = {}
        for file, text in sources.items():
            name = Path(file).name
            while name in copies:
                name = f"_{name}"  # of two files with one name in two folders
            copies[name] = text
        for name, text in copies.items():
            files.write_file(self.path / "code" / name, text)

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
        for name, table in (("ledger", self.ledger), ("clients", self.clients)):
            with files.replacing(self.path / f"{name}.parquet") as part:
                table.to_parquet(part)

    def close(self) -> None:
        """Close all files."""
        self._opened.close()


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


def committed_model(path: Path) -> Params:
    """Return the model of the last committed round of a run. No code of the run is imported or called.

    Raises:
        ConfigError: the directory has no committed round, or is the run of a Flower app.
    """
    for _ in range(RETRIES):
        try:
            record = checkpoint.load(path / "checkpoints", "last", plain=True)
            break
        except FileNotFoundError:  # the live run has committed another round in the meantime
            continue
    else:
        raise ConfigError("", f"{path} has no committed round")
    state = record.get("state")
    found = record.get("model") or (state.get("model") if isinstance(state, dict) else state)
    if not isinstance(found, Params):
        raise ConfigError("", f"{path} holds no model of fl; the model of a Flower app is where the app put it")
    return found


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
    """Create a new directory below runs/. Runs that start in the same second get different ones.

    Characters of `name` that may lead elsewhere, such as slashes, become `_`.
    """
    safe = re.sub(r"[^\w.+=-]", "_", name)[:LONGEST_NAME]
    base = Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{safe}-seed{seed}"
    number, path = 0, base
    while True:
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1
            path = base.with_name(f"{base.name}-{number}")
