"""Measure the seconds from the command to the end of round 0, and compare them with what they cannot fall below.

    python -m experiments.benchmarks.startup [--turns 5] [--clients 1000]

    import torch    a process that imports torch
    bare ray        a process that starts Ray and two actors
    serial          `fl run` of softmax regression, until round 0 is announced
    ray             the same on two Ray workers

They take turns, after one turn that is not measured (it compiles, and fills the caches). The bars:

    serial <= 1.6 x import torch + 1 s              ray <= the same + bare ray
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml

ACTORS = """
import ray
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)

@ray.remote(num_cpus=1)
class Actor:
    def ready(self):
        return True

actors = [Actor.remote() for _ in range(2)]
ray.get([actor.ready.remote() for actor in actors])
"""
# keep bytecode, Python's default: a user's machine has compiled the modules once
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
FIRST_ROUND = re.compile(r"\s*1/1\s")  # the line that announces it


def config(clients: int) -> dict[str, object]:
    """Return a round of softmax regression."""
    return {
        "rounds": 1,
        "data": {"name": "noise", "clients": clients},
        "partition": "natural",
        "splits": {"val": 0.0},
        "model": "softmax",
        "cohort": {"size": 100},
        "strategy": "fedavg",
        "client": {"lr": 0.05, "batch": 10},
    }


def seconds_of_code(code: str) -> float:
    """Return the duration of a Python process."""
    start = time.perf_counter()
    command = [sys.executable, "-W", "ignore", "-c", code]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT)
    return time.perf_counter() - start


def seconds_to_round_0(file: Path, executor: str) -> float:
    """Return the time until a run announces round 0."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "fl", "run", str(file), "--out", f"{out}/run"]
        command += [f"execution.executor={executor}", "execution.workers=2"]
        start = time.perf_counter()
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        with subprocess.Popen(command, **streams, text=True, env=ENVIRONMENT) as process:
            assert process.stderr is not None
            lines = []
            for line in process.stderr:
                lines.append(line)
                if FIRST_ROUND.match(line):
                    taken = time.perf_counter() - start
        if process.returncode:
            raise SystemExit("".join(lines))
        return taken


def main() -> None:
    """Print a table of medians, and the bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="number of turns")
    parser.add_argument("--clients", type=int, default=1000, help="number of clients")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "softmax.yaml"
        file.write_text(yaml.safe_dump(config(arguments.clients)))
        contestants: dict[str, Callable[[], float]] = {
            "import torch": lambda: seconds_of_code("import torch"),
            "serial": lambda: seconds_to_round_0(file, "serial"),
            "bare ray": lambda: seconds_of_code(ACTORS),
            "ray": lambda: seconds_to_round_0(file, "ray"),
        }
        turns = [{name: run() for name, run in contestants.items()} for _ in range(arguments.turns + 1)][1:]
    medians = {name: statistics.median(turn[name] for turn in turns) for name in contestants}
    serial = 1.6 * medians["import torch"] + 1
    bars = {"serial": serial, "ray": serial + medians["bare ray"]}
    print(f"load {os.getloadavg()[0]:.1f}, medians of {arguments.turns} turns")
    print("| | seconds | fastest | bar | of the bar |\n|---|---:|---:|---:|---:|")
    for name, median in medians.items():
        fastest, bar = min(turn[name] for turn in turns), bars.get(name)
        compared = f"{bar:.2f} | {median / bar:.2f}" if bar else " | "
        print(f"| {name} | {median:.2f} | {fastest:.2f} | {compared} |")


if __name__ == "__main__":
    main()
