"""Measure the seconds from the command to the end of round 0.

    python -m experiments.benchmarks.startup [--turns 5] [--clients 100000]

Softmax regression runs serially and on two Ray workers, twice in a process. For comparison, a process runs
`import torch, ray; ray.init()` only. These take turns; the table shows medians of the parts of each:

    imports         imports, and reading the configuration
    data, model     data, partition and model; Ray starts at the same time
    workers         time until the workers are ready after that
    round 0         the first round
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

RUN = """
import json, sys, tempfile, time
start = time.perf_counter()

def measure(config, out):
    started, marks = time.perf_counter(), {}

    def watch(event, value):
        marks[event] = time.perf_counter() - started

    fl.run(config, out=out, watch=watch)
    return marks

if __name__ == "__main__":
    import fl
    from fl.config.config import resolve
    from fl.config.reading import read
    from fl.execution.workers.ray_pool import keep_workers
    config = resolve(read(json.loads(sys.argv[1])))
    imports = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder, keep_workers():
        for name in "ab":
            print(json.dumps({"imports": imports, **measure(config, folder + "/" + name)}))
"""
BARE = """
import json, time
start = time.perf_counter()
import torch, ray
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
print(json.dumps({"total": time.perf_counter() - start}))
"""


def config(executor: str, clients: int) -> dict:
    return {
        "rounds": 1,
        "data": {"name": "noise", "clients": clients},
        "partition": "natural",
        "splits": {"val": 0.0},
        "model": "softmax",
        "cohort": {"size": 1000},
        "strategy": "fedavg",
        "client": {"lr": 0.05, "batch": 10},
        "execution": {"executor": executor, "workers": 2},
    }


def run_code(code: str, *arguments: str) -> list[dict[str, float]]:
    """Run code in a new Python process and return its output, one JSON object per line."""
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def split(marks: dict[str, float], again: bool = False) -> dict[str, float]:
    """Return the seconds of each part and their total. A second run in a process (`again`) imports nothing."""
    parts = {"imports": 0.0 if again else marks["imports"], "data, model": marks["start"]}
    parts |= {"workers": marks["ready"] - marks["start"], "round 0": marks["round"] - marks["ready"]}
    return parts | {"total": sum(parts.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5, help="number of turns")
    parser.add_argument("--clients", type=int, default=100_000, help="number of clients")
    arguments = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {}
    for _ in range(arguments.turns):
        for executor in ("serial", "ray"):
            first, second = run_code(RUN, json.dumps(config(executor, arguments.clients)))
            results.setdefault(executor, []).append(split(first))
            results.setdefault(f"{executor}, the next run", []).append(split(second, again=True))
        results.setdefault("bare torch and ray", []).extend(run_code(BARE))
    columns = ["imports", "data, model", "workers", "round 0", "total"]
    print(f"| seconds, medians of {arguments.turns} | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for name, turns in results.items():
        medians = [f"{statistics.median(t[c] for t in turns):.2f}" if c in turns[0] else "" for c in columns]
        print(f"| {name} | {' | '.join(medians)} |")


if __name__ == "__main__":
    main()
