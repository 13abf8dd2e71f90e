"""A million clients: `python -m experiments.benchmarks.scale [speed memory states] [--clients 1000000] [--workers 2]`

speed    rounds of 1,000 and of 10,000 clients by turns: clients per second of both; what the driver's part of a round takes, and sampling
memory   how far the driver's memory grows above what it had before round 0, for cohorts of 1,000, 10,000 and 100,000
states   SCAFFOLD, a state for each client that ever took part: seconds per round, the driver's memory, bytes on disk

Softmax regression 60 -> 10, 20 samples each, batch 10, one epoch. As float32 the rows of a million such clients take 4.8 GB: here they
hold 20 of 1,000,000 rows each, so that every row has 20 owners (`Overlapping`); what is asked of the engine is the same.
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
from typing import Any

import numpy as np

from fl.config.config import resolve
from fl.config.reading import read
from fl.data.dataset import Dataset
from fl.data.partition import Partition
from fl.method.sampler import CohortSampler, Uniform
from fl.simulation.run import run

SAMPLES, ROWS = 20, 1_000_000
MB = 1 << 20
NEVER = 10**9


@dataclass(frozen=True, kw_only=True)
class Overlapping:
    """`clients` clients with SAMPLES rows each, one after another; from the last row on again from the first."""

    clients: int

    def split(self, dataset: Dataset) -> Partition:
        rows = np.arange(self.clients * SAMPLES) % len(dataset)
        return Partition(rows, np.arange(self.clients + 1) * SAMPLES)


@dataclass(frozen=True, kw_only=True)
class Turns(CohortSampler):
    """Uniform cohorts whose sizes take turns, round by round."""

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


class Watch:
    """Seconds of each round, its commit included, and the memory of this process."""

    def __init__(self):
        self.begun, self.rows, self.growth = time.perf_counter(), [], 0

    def __call__(self, event: str, value: Any) -> None:
        now = time.perf_counter()
        if event == "ready":
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
            self.ready, self.before = now - self.begun, memory("VmRSS")
        elif event == "round":
            seconds = now - self.last
            self.rows.append({"clients": value["cohort_size"], "seconds": seconds, "busy": value["busy_seconds"]})
            self.growth = memory("VmHWM") - self.before
        self.last = time.perf_counter()


def memory(what: str) -> int:
    """Bytes of this process: VmRSS, or VmHWM for the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def measured(settings: dict[str, Any]) -> dict[str, Any]:
    """A run in this process."""
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        run(resolve(read(settings)), out=folder, watch=watch)
        states = sum(path.stat().st_size for path in Path(folder, "clients").iterdir())
    return {"rows": watch.rows, "ready": watch.ready, "before": watch.before, "growth": watch.growth, "states": states}


def apart(settings: dict[str, Any]) -> dict[str, Any]:
    """`measured`, in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "experiments.benchmarks.scale", "--run", json.dumps(settings)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def speed(asked: argparse.Namespace) -> None:
    turns = 6
    found = apart(config(asked.clients, asked.workers, 11 * turns, (1000,) * 10 + (10_000,)))
    rows = found["rows"][11:]  # the first turn warms up
    small, large = [], []
    for turn in range(turns - 1):
        *ten, one = rows[11 * turn : 11 * (turn + 1)]
        small.append(10_000 / sum(row["seconds"] for row in ten))
        large.append(10_000 / one["seconds"])
    ratios = [b / a for a, b in zip(small, large)]
    print(f"{asked.clients:,} clients, ready after {found['ready']:.1f} s")
    for cohort, figures in ((1000, small), (10_000, large)):
        print(f"cohort {cohort:,}: {statistics.median(figures):,.0f} clients/s")
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    for cohort in (1000, 10_000):
        idle = [r["seconds"] - r["busy"] / max(asked.workers, 1) for r in rows if r["clients"] == cohort]
        print(f"cohort {cohort:,}: {1e3 * statistics.median(idle):.1f} ms of a round in which workers do not train")
    for population in (10**5, 10**6, 10**7):
        begun = time.perf_counter()
        for round_ in range(20):
            Uniform(size=10_000).sample(None, round_, 0, np.broadcast_to(np.int64(SAMPLES), population))
        print(f"sampling 10,000 of {population:,}: {(time.perf_counter() - begun) / 20 * 1e3:.2f} ms")


def cohorts(asked: argparse.Namespace) -> None:
    for cohort in (1000, 10_000, 100_000):
        found = apart(config(asked.clients, asked.workers, 3, (cohort,)))
        figures = f"{found['before'] / MB:.0f} MB before round 0, at most {found['growth'] / MB:.0f} MB more"
        print(f"cohort {cohort:,}: driver {figures}", flush=True)


def states(asked: argparse.Namespace) -> None:
    rounds = -(-asked.clients // 10_000)
    found = apart(
        config(asked.clients, asked.workers, rounds, (), cohort={"name": "cyclic", "size": 10_000}, strategy="scaffold")
    )
    seconds = [row["seconds"] for row in found["rows"]]
    first, last = (statistics.median(part) for part in (seconds[1:11], seconds[-10:]))
    print(
        f"SCAFFOLD, {rounds} rounds of 10,000, each client once: {first:.2f} s a round at first, {last:.2f} s at last"
    )
    print(
        f"driver {found['growth'] / MB:.0f} MB more than before round 0; {found['states'] / MB:,.0f} MB of states on disk"
    )


PARTS = {"speed": speed, "memory": cohorts, "states": states}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {list(PARTS)}; all if none is named")
    parser.add_argument("--clients", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2, help="0: in the driver's own process")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.run:
        print(json.dumps(measured(json.loads(asked.run))))
        return
    if unknown := set(asked.parts) - PARTS.keys():
        parser.error(f"{sorted(unknown)} not in {list(PARTS)}")
    for name in asked.parts or PARTS:
        PARTS[name](asked)


if __name__ == "__main__":
    main()
