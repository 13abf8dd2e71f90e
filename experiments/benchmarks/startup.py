"""From the command to the end of round 0: `python -m experiments.benchmarks.startup [--turns 5] [--clients 100000]`

Softmax regression by turns: serial, ray with two workers, the second of two runs in one process, and as a yardstick a bare
`import torch, ray; ray.init()`. Of each the median, and how ours splits: imports and reading the configuration; data, partition and model
(Ray comes up meanwhile); what workers then still take; round 0.
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
marks = {}

def watch(event, value):
    marks[event] = time.perf_counter() - marks["begun"]

def once(config, out):
    marks["begun"] = time.perf_counter()
    fl.run(config, out=out, watch=watch)
    return dict(marks)

if __name__ == "__main__":
    import fl
    from fl.config.config import resolve
    from fl.config.reading import read
    from fl.execution.workers.ray_pool import kept
    config = resolve(read(json.loads(sys.argv[1])))
    imports = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder, kept():
        for name in "ab":
            print(json.dumps({"imports": imports, **once(config, folder + "/" + name)}))
"""
BARE = """
import json, time
start = time.perf_counter()
import torch, ray
ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
print(json.dumps({"all": time.perf_counter() - start}))
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


def timed(code: str, *arguments: str) -> list[dict[str, float]]:
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def split(marks: dict[str, float], again: bool = False) -> dict[str, float]:
    """Seconds of each part, and of all."""
    parts = {"imports": 0.0 if again else marks["imports"], "data, model": marks["start"]}
    parts |= {"workers": marks["ready"] - marks["start"], "round 0": marks["round"] - marks["ready"]}
    return parts | {"all": sum(parts.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--clients", type=int, default=100_000)
    asked = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(asked.turns):
        for executor in ("serial", "ray"):
            first, second = timed(RUN, json.dumps(config(executor, asked.clients)))
            found.setdefault(executor, []).append(split(first))
            found.setdefault(f"{executor}, the next run", []).append(split(second, again=True))
        found.setdefault("bare torch and ray", []).extend(timed(BARE))
    columns = ["imports", "data, model", "workers", "round 0", "all"]
    print(f"| seconds, medians of {asked.turns} | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for name, turns in found.items():
        medians = [f"{statistics.median(t[c] for t in turns):.2f}" if c in turns[0] else "" for c in columns]
        print(f"| {name} | {' | '.join(medians)} |")


if __name__ == "__main__":
    main()
