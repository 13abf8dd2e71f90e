"""Memory and disk of recommendation with many users, each of whom keeps a state.

    python -m experiments.benchmarks.recommendation [--users 100000] [--workers 2] [--method fedrap]

Each user trains once, on Ray workers, on ten synthetic positives and 40 negatives of 1,000 items, d = 16. FedRAP keeps
the rows of the user's own table that occurred. Printed are the resident memory of the driver and of the largest worker
after the first tenth of the rounds and after the last one, and the size of the run directory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fl.config.config import resolve
from fl.config.reading import read
from fl.simulation.run import run
from fl.tracking.callback import Callback, Row, Run

MB = 1 << 20
ROUNDS = 50


def settings(users: int, workers: int, method: str) -> dict[str, Any]:
    """Return the configuration: ROUNDS rounds, in which each user trains once."""
    return {
        "rounds": ROUNDS,
        "data": {"name": "interactions", "users": users, "items": 1000, "per_user": 12},
        "partition": "natural",
        "splits": {"val": 0.0},
        "task": "ranking",
        "model": {"name": "item_table", "dim": 16},
        "cohort": {"name": "cyclic", "size": -(-users // ROUNDS)},
        "strategy": method,
        "client": {"epochs": 1, "batch": 64, "lr": 0.1, "rates": {"items.weight": 10.0}},
        "evaluation": {"every": ROUNDS, "server": False, "clients": 0},
        "checkpoint": {"best": False},
        "execution": {"executor": "ray", "workers": workers} if workers else {"executor": "serial"},
    }


def resident(process: int | str) -> int:
    """Return the resident memory of a process in bytes, without files that it has mapped."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


class Watch(Callback):
    """Record the memory of driver and workers after each round."""

    def __init__(self) -> None:
        self.simulation: Any = None
        self.driver: list[int] = []
        self.workers: list[int] = []
        self.started = 0.0

    def start(self, run: Run) -> None:
        self.simulation = run

    def ready(self, run: Run) -> None:
        self.started = time.perf_counter()

    def round(self, row: Row) -> None:
        members = getattr(self.simulation.executor, "members", [])
        self.driver.append(resident("self"))
        self.workers.append(max((resident(member.pid) for member in members), default=0))


def measure(users: int, workers: int, method: str) -> dict[str, Any]:
    """Perform the run in this process. Return memory by round, bytes on disk, and seconds."""
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        run(resolve(read(settings(users, workers, method))), out=Path(folder) / "run", callbacks=[watch])
        disk = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    seconds = time.perf_counter() - watch.started
    return {"driver": watch.driver, "workers": watch.workers, "disk": disk, "seconds": seconds}


def measure_in_process(users: int, workers: int, method: str) -> dict[str, Any]:
    """Call `measure` in a new process, so that earlier runs do not influence memory."""
    call = f"json.dumps(measure({users}, {workers}, {method!r}))"
    code = f"import json; from {__spec__.name} import measure; print({call})"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=100_000, help="number of users")
    parser.add_argument("--workers", type=int, default=2, help="number of Ray workers; 0: train in the driver")
    parser.add_argument("--method", default="fedrap", help="strategy")
    arguments = parser.parse_args()
    found = measure_in_process(arguments.users, arguments.workers, arguments.method)
    print(f"{arguments.method}, {arguments.users:,} users, each once, {found['seconds']:.0f} s")
    for name in ("driver", "workers"):
        early, late = found[name][ROUNDS // 10], found[name][-1]
        figures = f"{early / MB:.0f} MB after a tenth, {late / MB:.0f} MB at the end"
        print(f"{name}: {figures} ({(late - early) / MB:+.0f} MB)")
    print(f"run directory: {found['disk'] / MB:,.0f} MB")


if __name__ == "__main__":
    main()
