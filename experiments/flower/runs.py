"""Run a Flower app, unchanged, on our engine and on Flower's own simulation, and say what came of it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.flower import hub
from experiments.flower.faults import Fault, first_fault
from experiments.flower.packages import NotInstallable, environment, packages_of

METRICS = 3  # shown of each app


@dataclass(frozen=True)
class Outcome:
    """The outcome of an app, a row of the table.

    Args:
        app: Name of the app's folder.
        flwr: Version of flwr that ran it.
        ran: Whether it ended without an error.
        outcome: "ran ...", "raised ...", "needs ..." or "stopped ...".
        ours: Seconds of `fl flower run`, including the start of Python; None if it did not end by itself.
        flower: Seconds of Flower's simulation, or why there are none.
        metrics: Metrics of the first and the last round.
    """

    app: str
    flwr: str
    ran: bool
    outcome: str
    ours: float | None = None
    flower: str = ""
    metrics: str = ""


@dataclass(frozen=True)
class Finished:
    """A process that has ended: its exit code (None if it was stopped), its seconds and its output."""

    code: int | None
    seconds: float
    output: str


def apps_in(folder: Path) -> list[Path]:
    """Return the apps of a folder: its subfolders, or itself, with a [tool.flwr.app] in pyproject.toml."""
    folder = folder.resolve()
    places = [folder, *sorted(place for place in folder.iterdir() if place.is_dir())]
    files = [place / "pyproject.toml" for place in places]
    return [file.parent for file in files if file.is_file() and "[tool.flwr.app" in file.read_text(errors="replace")]


def run_app(
    app: Path, base: Path, place: Path, limit: float, flower: bool, requirements: Sequence[str] = ()
) -> Outcome:
    """Run an app on our engine and, if `flower` and nothing is missing, on Flower's.

    Args:
        app: Folder of the app.
        base: Folder of packages and stand-ins, which all apps share.
        place: Working directory and log files of this app; it must not exist.
        limit: Seconds after which either of the two is stopped.
        flower: Whether to run Flower's own simulation, too.
        requirements: Requirements in pip's form beside those of the app.
    """
    version = importlib.metadata.version("flwr")
    try:
        packages = packages_of(app, base, requirements)
    except NotInstallable as error:
        return Outcome(app.name, version, False, f"needs packages: {error}")
    names = hub.names_in(app)
    place.mkdir(parents=True)
    _link_stand_ins(names, base / "hub", place)
    settings = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(base / "huggingface"), "FLWR_TELEMETRY_ENABLED": "0"}
    # tracebacks on lines that are not wrapped
    settings |= {"RAY_USAGE_STATS_ENABLED": "0", "FL_TRACEBACK": "1", "COLUMNS": "1000"}

    out = place / "run"
    command = ["-m", "fl", "flower", "run", str(app), "--out", str(out)]
    ours = _execute(command, place, environment(packages) | settings, place / "ours.log", limit)
    rows = _read_rows(out / "metrics.jsonl")
    dropped = sum(row["dropped"] for row in rows)
    fault = first_fault(ours.output, app) if ours.code != 0 or dropped else None
    missing = _missing(fault, names)
    if ours.code is None:
        outcome = f"stopped after {limit:.0f} s"
    elif missing:
        outcome = missing
    elif ours.code or dropped:
        replies = f"{dropped} of {_messages(rows)} replies are errors: " if not ours.code else ""
        outcome = f"{replies}raised {fault}" if fault else f"{replies}exit code {ours.code}, see {place}/ours.log"
    else:
        outcome = f"ran {len(rows)} rounds, {_messages(rows)} replies"
    ran = ours.code == 0 and not dropped
    theirs = ""
    if flower and not missing:
        # Ray's workers import the app by its folder
        command = ["-m", "experiments.benchmarks.peers.flower_app", str(app)]
        done = _execute(command, place, environment(packages, app) | settings, place / "flower.log", limit)
        theirs = _seconds_or_reason(done, app, limit)
    seconds = None if ours.code is None else ours.seconds
    return Outcome(app.name, version, ran, outcome, seconds, theirs, _first_and_last(rows))


def _link_stand_ins(names: list[str], store: Path, place: Path) -> None:
    """Write the stand-ins that an app may ask for, and link to them in its working directory."""
    for name in filter(hub.is_known, names):
        try:
            hub.write(name, store)
        except ValueError as error:  # FL_DATA has no copy
            print(f"no stand-in for {name}: {error}", file=sys.stderr)
            continue
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).symlink_to(store / name)


def _execute(arguments: list[str], place: Path, env: dict[str, str], log: Path, limit: float) -> Finished:
    """Run Python with its output in `log`, and stop it and its children after `limit` seconds."""
    start = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=place,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return Finished(code, time.perf_counter() - start, log.read_text(errors="replace"))


def _missing(fault: Fault | None, names: list[str]) -> str | None:
    """Return "needs ..." if an error says that a package or data of the hub is missing."""
    if fault is None:
        return None
    if package := fault.missing_package():
        return f"needs package {package}"
    data = fault.missing_data([name for name in names if not hub.is_known(name)])
    return None if data is None else f"needs hub data {', '.join(data) or fault.error}"


def _seconds_or_reason(done: Finished, app: Path, limit: float) -> str:
    """Return the seconds of Flower's simulation, or what kept it from its end."""
    if done.code is None:
        return f"stopped after {limit:.0f} s"
    fault = first_fault(done.output, app)
    if done.code or fault:  # an error of a client is only in the output
        return f"raised {fault}" if fault else f"exit code {done.code}"
    return f"{done.seconds:.0f}"


def _read_rows(file: Path) -> list[dict[str, Any]]:
    """Read the metrics of a run; [] if there are none."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _messages(rows: list[dict[str, Any]]) -> int:
    return sum(value for row in rows for key, value in row.items() if key.startswith("messages/"))


def _first_and_last(rows: list[dict[str, Any]]) -> str:
    """Return some metrics of the first and the last round, evaluations first: "evaluate/loss 2.30 -> 2.04"."""
    if not rows:
        return ""
    numbers = [{k: v for k, v in row.items() if "/" in k and isinstance(v, float)} for row in (rows[0], rows[-1])]
    common = sorted((key for key in numbers[0] if key in numbers[1]), key=lambda key: not key.startswith("evaluate/"))
    return ", ".join(f"{key} {numbers[0][key]:.3g} -> {numbers[1][key]:.3g}" for key in common[:METRICS])
