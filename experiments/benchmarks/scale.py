"""Measure runs with a million clients.

    python -m experiments.benchmarks.scale [speed memory states] [--clients 1000000] [--workers 2]

speed    clients per second with cohorts of 1,000 and 10,000, in turns; milliseconds of a round in which workers do not
         train; milliseconds of sampling
memory   growth of the driver's memory after the start of round 0, for cohorts of 1,000, 10,000 and 100,000
states   SCAFFOLD, which keeps a state per client: seconds per round, growth of the driver's memory, bytes on disk

All clients train softmax regression (60 features, 10 classes) on 20 samples each: batch 10, one epoch. The rows of a
million such clients would take 4.8 GB as float32. So each client holds 20 of 1,000,000 rows, and every row belongs to
20 clients (`Overlapping`). The engine does the same work as with rows of their own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fl.config.config import resolve
from fl.config.reading import read
from fl.data.dataset import Dataset
from fl.data.partition import Partition
from fl.method.sampler import CohortSampler, Uniform
from fl.simulation.run import run
from fl.tracking.callback import Callback, Row, Run

SAMPLES, ROWS = 20, 1_000_000
MB = 1 << 20
NEVER = 10**9


@dataclass(frozen=True, kw_only=True)
class Overlapping:
    """Partition that gives SAMPLES consecutive rows to each client; it starts again at row 0 after the last row."""

    clients: int

    overlaps: ClassVar[bool] = True
    leaves_rows: ClassVar[bool] = True  # with few clients

    def split(self, dataset: Dataset) -> Partition:
        rows = np.arange(self.clients * SAMPLES) % len(dataset)
        return Partition(rows, np.arange(self.clients + 1) * SAMPLES)


@dataclass(frozen=True, kw_only=True)
class Turns(CohortSampler):
    """Uniform cohorts. Round r has the size sizes[r % len(sizes)]."""

    sizes: tuple[int, ...]

    def sample(self, state, round_, seed, sizes):
        return Uniform(size=self.sizes[round_ % len(self.sizes)]).sample(state, round_, seed, sizes)


def config(clients: int, workers: int, rounds: int, cohorts: tuple[int, ...], **more: Any) -> dict[str, Any]:
    here = f"{Path(__file__).resolve()}"
    return {
        "rounds": rounds,
        "data": {"name": "noise", "clients": ROWS // SAMPLES, "samples": SAMPLES},
        "partition": {"name": f"{here}:Overlapping", "clients": clients},
        "splits": {"val": 0.0, "test": 0.0},
        "model": "softmax",
        "cohort": {"name": f"{here}:Turns", "sizes": cohorts},
        "strategy": "fedavg",
        "client": {"batch": 10, "lr": 0.05},
        "evaluation": {"every": NEVER, "server": False},
        "checkpoint": {"best": False},
        "execution": {"executor": "ray", "workers": workers} if workers else {"executor": "serial"},
    } | more


class Watch(Callback):
    """Record the seconds of each round, with its commit, and the memory of this process."""

    def __init__(self):
        self.started, self.rows, self.growth = time.perf_counter(), [], 0
        self.last = self.started

    def ready(self, run: Run) -> None:
        self.last = time.perf_counter()
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak (VmHWM)
        self.seconds_to_start, self.before = self.last - self.started, memory("VmRSS")

    def round(self, row: Row) -> None:
        seconds = time.perf_counter() - self.last
        self.rows.append({"clients": row["cohort_size"], "seconds": seconds, "busy": row["busy_seconds"]})
        self.growth = memory("VmHWM") - self.before
        self.last = time.perf_counter()


def memory(field: str) -> int:
    """Return the memory of this process in bytes: VmRSS now, VmHWM at the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """Perform a run in this process and return its figures."""
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        run(resolve(read(settings)), out=folder, callbacks=[watch])
        states = sum(path.stat().st_size for path in Path(folder, "clients").iterdir())
    return {
        "rows": watch.rows,
        "ready": watch.seconds_to_start,
        "before": watch.before,
        "growth": watch.growth,
        "states": states,
    }


def measure_in_process(settings: dict[str, Any]) -> dict[str, Any]:
    """Call `measure` in a new process, so that earlier runs do not influence memory."""
    command = [sys.executable, "-W", "ignore", "-m", "experiments.benchmarks.scale", "--run", json.dumps(settings)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def speed(arguments: argparse.Namespace) -> None:
    turns = 6
    result = measure_in_process(config(arguments.clients, arguments.workers, 11 * turns, (1000,) * 10 + (10_000,)))
    rows = result["rows"][11:]  # turn 0 warms up
    small, large = [], []
    for turn in range(turns - 1):
        *ten, one = rows[11 * turn : 11 * (turn + 1)]
        small.append(10_000 / sum(row["seconds"] for row in ten))
        large.append(10_000 / one["seconds"])
    ratios = [b / a for a, b in zip(small, large)]
    print(f"{arguments.clients:,} clients, ready after {result['ready']:.1f} s")
    for cohort, figures in ((1000, small), (10_000, large)):
        print(f"cohort {cohort:,}: {statistics.median(figures):,.0f} clients/s")
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    for cohort in (1000, 10_000):
        idle = [r["seconds"] - r["busy"] / max(arguments.workers, 1) for r in rows if r["clients"] == cohort]
        print(f"cohort {cohort:,}: {1e3 * statistics.median(idle):.1f} ms of a round in which workers do not train")
    for population in (10**5, 10**6, 10**7):
        start = time.perf_counter()
        for round_ in range(20):
            Uniform(size=10_000).sample(None, round_, 0, np.broadcast_to(np.int64(SAMPLES), population))
        print(f"sampling 10,000 of {population:,}: {(time.perf_counter() - start) / 20 * 1e3:.2f} ms")


def cohorts(arguments: argparse.Namespace) -> None:
    for cohort in (1000, 10_000, 100_000):
        result = measure_in_process(config(arguments.clients, arguments.workers, 3, (cohort,)))
        figures = f"{result['before'] / MB:.0f} MB before round 0, at most {result['growth'] / MB:.0f} MB more"
        print(f"cohort {cohort:,}: driver {figures}", flush=True)


def states(arguments: argparse.Namespace) -> None:
    rounds = -(-arguments.clients // 10_000)
    cohort = {"name": "cyclic", "size": 10_000}
    result = measure_in_process(
        config(arguments.clients, arguments.workers, rounds, (), cohort=cohort, strategy="scaffold")
    )
    seconds = [row["seconds"] for row in result["rows"]]
    first, last = (statistics.median(part) for part in (seconds[1:11], seconds[-10:]))
    print(f"SCAFFOLD, {rounds} rounds of 10,000, each client once")
    print(f"first rounds {first:.2f} s, last rounds {last:.2f} s per round")
    print(f"driver {result['growth'] / MB:.0f} MB more than before round 0")
    print(f"states on disk {result['states'] / MB:,.0f} MB")


PARTS = {"speed": speed, "memory": cohorts, "states": states}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"some of {list(PARTS)}; default: all")
    parser.add_argument("--clients", type=int, default=1_000_000, help="number of clients")
    parser.add_argument("--workers", type=int, default=2, help="number of Ray workers; 0: train in the driver")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        print(json.dumps(measure(json.loads(arguments.run))))
        return
    if unknown := set(arguments.parts) - PARTS.keys():
        parser.error(f"{sorted(unknown)} not in {list(PARTS)}")
    for name in arguments.parts or PARTS:
        PARTS[name](arguments)


if __name__ == "__main__":
    main()
