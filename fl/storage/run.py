"""The run directory: everything needed to repeat a run, to resume it and to report it.

    config.yaml          resolved configuration with all defaults: `fl run DIR/config.yaml` repeats the run
    environment.json     versions, machine, command          code/   copies of the user's own files
    metrics.jsonl        one object per committed round, and one of the work after the last round, if there is any
    ledger.parquet       bytes per round, client, direction and group        clients.parquet   metrics per client
    model.safetensors    the final model by tensor names             SHA256SUMS   digests of all these files
    checkpoints/         last, best, final            clients/   states of clients           streams/   growing tables
    samples/             what a language model writes after some rounds, if requested
    profile.json, trace.json   the time spent, if requested

A commit is one file of checkpoints/ (checkpoint.py). It holds the length and the checksum of each growing file, so a
resumed run cuts them back to its commit, and a damaged one is noticed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import logging
import math
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import fl
from fl.errors import ConfigError
from fl.storage import checkpoint, files, sums
from fl.storage.clients import ClientStates
from fl.storage.growing import Damaged, GrowingFile, Mark
from fl.storage.metrics import ClientMetrics
from fl.storage.yaml_text import dump
from fl.tensors.params import Params

if TYPE_CHECKING:
    from fl.communication.ledger import Ledger

log = logging.getLogger(__name__)
OpenLedger: TypeAlias = "Callable[[Path, Mark | None], Ledger]"

LONGEST_NAME = 50  # characters of a method's name in the name of a run directory
PACKAGES = ("torch", "numpy", "numba", "ray", "flwr", "scikit-learn", "pyarrow", "safetensors")


class RunDirectory:
    """Writer of a run directory.

    Args:
        path: The directory; it is created if needed.
        open_ledger: Opens the ledger at a path, cut back to a mark. The caller passes it, because
            the storage of a run does not know what a ledger counts.
        last: The file of the commit to continue from, and its marks of the growing files, as `flush` returned them.
            None starts a new run.

    Raises:
        Damaged: A growing file does not begin with what was committed.
    """

    def __init__(self, path: Path, open_ledger: OpenLedger, last: tuple[Path, Mapping[str, Any]] | None = None) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        for name in ("checkpoints", "clients", "streams", "scratch"):
            files.make_folder(path / name)
        file, marks = last or (None, {"metrics": None, "ledger": None, "clients": ()})
        with contextlib.ExitStack() as opened:
            self.metrics = GrowingFile(path / "metrics.jsonl", marks["metrics"])
            opened.callback(self.metrics.close)
            self.ledger = open_ledger(path / "streams" / "ledger.arrow", marks["ledger"])
            opened.callback(self.ledger.close)
            self.clients = ClientMetrics(path / "streams", marks["clients"])
            opened.callback(self.clients.close)
            self.commits = checkpoint.Commits(path / "checkpoints", file)
            opened.callback(self.commits.close)
            self._opened = opened.pop_all()

    def begin(self, states: ClientStates) -> None:
        """Cut off what was not committed, and delete what a killed or finished run has left. Call it before writing."""
        for growing in (self.metrics, self.ledger, self.clients):
            growing.cut()
        for name in (sums.NAME, "checkpoints/final.safetensors"):
            files.remove(self.path / name)
        states.unpin("final")
        for leftover in (self.path / "scratch").glob("*.seg"):
            files.remove(leftover)

    def configure(self, config: dict[str, Any]) -> None:
        """Write config.yaml."""
        files.write_file(self.path / "config.yaml", dump(config))

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
        """Write recorded rows; return the marks of the growing files."""
        return {"metrics": self.metrics.mark, "ledger": self.ledger.commit(), "clients": self.clients.commit()}

    def commit(
        self, rows: Sequence[Mapping[str, Any]], tree: Mapping[str, Any], states: ClientStates, best: bool
    ) -> None:
        """Commit the rounds since the last commit.

        Args:
            rows: Metrics of these rounds.
            tree: What the run continues from.
            states: States of the clients. What they need to be found again is added to `tree`.
            best: Also save it as the checkpoint `best`.
        """
        for row in rows:
            self._append(row)
        record = {**tree, "clients": states.commit(), "files": self.flush()}
        if best:
            pinned = states.pin("best")
            checkpoint.save(self.path / "checkpoints" / "best.safetensors", {**record, "pinned": pinned})

        def growing() -> list[Path]:
            best = (self.path / "checkpoints").glob("best.safetensors")
            return [self.metrics.path, *(self.path / "streams").iterdir(), *best, *states.growing()]

        self.commits.save(record, growing, wait=states.crowded)
        states.sweep(self.commits.number, self.commits.needed)

    def keep_final(self, row: Mapping[str, Any], tree: Mapping[str, Any], states: ClientStates) -> None:
        """Keep the result of the work after the last round. No commit contains it, and a resumed run removes it.

        Args:
            row: Its metrics.
            tree: The strategy's state after the work, for `checkpoints/final.safetensors`.
            states: States of the clients after the work.
        """
        self._append(row)
        self.flush()
        pinned = states.pin("final")
        checkpoint.save(self.path / "checkpoints" / "final.safetensors", {**tree, "pinned": pinned})

    def _append(self, row: Mapping[str, Any]) -> None:
        self.metrics.append((json.dumps(finite(row), allow_nan=False) + "\n").encode())

    def forget(self) -> None:
        """Drop recorded rows that were not written."""
        self.ledger.forget()
        self.clients.forget()

    def export(self) -> None:
        """Write the tables as .parquet, and the digests of all files that a finished run leaves."""
        for name, table in (("ledger", self.ledger), ("clients", self.clients)):
            with files.replacing(self.path / f"{name}.parquet") as part:
                table.to_parquet(part)
        sums.write_sums(self.path)

    def close(self) -> None:
        """Close all files."""
        self._opened.close()


def open_run(
    path: Path, open_ledger: OpenLedger, states: ClientStates, resumed: bool
) -> tuple[RunDirectory, Mapping[str, Any] | None]:
    """Open the directory of a new run, or of a run that continues from its newest intact commit.

    Call `RunDirectory.begin` when the run is sure to begin. Until then nothing is changed that a refusal would lose.

    Args:
        path: The directory.
        open_ledger: As in `RunDirectory`.
        states: States of the clients; they return to those of the commit.
        resumed: Whether the run continues.

    Returns:
        The directory, and the record of the commit; None for a new run.

    Raises:
        ConfigError: No commit is intact.
    """
    if not resumed:
        return RunDirectory(path, open_ledger), None
    damages: list[Damaged] = []
    for file, record in checkpoint.intact(path / "checkpoints"):
        try:
            if isinstance(record, Damaged):
                raise record
            with contextlib.ExitStack() as opened:
                folder = RunDirectory(path, open_ledger, (file, record["files"]))
                opened.callback(folder.close)
                states.restore(record["clients"])
                opened.pop_all()
        except Damaged as damage:
            damages.append(damage)
            continue
        if damages:
            log.warning("%s. The run continues from the commit before it, after %s rounds", damages[0], record["round"])
        return folder, record
    raise ConfigError(
        "", f"{damages[0]}, and no earlier commit is intact; start a new run" if damages else f"{path} holds no commit"
    )


def committed(path: Path) -> bool:
    """Whether a directory holds a run with a commit."""
    return checkpoint.committed(path / "checkpoints")


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
    """Return the metrics of the committed rounds of a run. A line that a killed run has not finished is left out."""
    lines = sums.checked(path / "metrics.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def rounds_done(row: Mapping[str, Any]) -> int:
    """Return the number of rounds that are done at a row of metrics. The row of the final work is no round.

    >>> rounds_done({"round": -1}), rounds_done({"round": 4}), rounds_done({"round": 5, "stage": "final"})
    (0, 5, 5)
    """
    return int(row["round"]) + ("stage" not in row)


def of_rounds(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows without that of the work after the last round."""
    return [row for row in rows if "stage" not in row]


def last_commit(path: Path) -> Mapping[str, Any]:
    """Return the record of the newest intact commit of a run. No code of the run is imported or called.

    Raises:
        ConfigError: the directory has none.
    """
    found = [tree for _, tree in checkpoint.intact(path / "checkpoints", plain=True)]
    record = next((tree for tree in found if not isinstance(tree, Damaged)), None)
    if record is None:
        raise ConfigError("", str(found[0]) if found else f"{path} has no committed round")
    return record


def committed_model(record: Mapping[str, Any]) -> Params:
    """Return the model in the record of a commit, see `last_commit`.

    Raises:
        ConfigError: it is the run of a Flower app.
    """
    state = record.get("state")
    model = record.get("model") or (state.get("model") if isinstance(state, dict) else state)
    if not isinstance(model, Params):
        raise ConfigError("", "the run has no model of fl; the model of a Flower app is where the app put it")
    return model


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
