"""SCAFFOLD on one node and on several, on the same cores of this machine, by turns: clients per second, CPU per client.

Ray counts the cores of each node; the machine has fewer, and all nodes share them. So the same cores do the work, and
the ratio of CPU seconds tells what several nodes add: transfers and their copies. It depends less than clients per
second on what else the machine does.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from experiments.benchmarks.nodes.cluster import Nodes, started
from fl.config.config import resolve
from fl.config.reading import read
from fl.simulation.simulation import Simulation

CONFIG = Path(__file__).parent.parent / "femnist_mlp.yaml"
VARIANTS = {"auto": {}, "loop": {"execution.plan": "loop"}}
ROUNDS, TURNS, COHORT, CLIENTS = 6, 2, 120, 240


def processor_seconds() -> float:
    """Return the CPU seconds of this process and of all processes below it: nodes and workers."""
    total = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def configured(nodes: Nodes, workers: int, **more: Any) -> dict[str, Any]:
    """Return the overrides of a run of SCAFFOLD."""
    place = {"execution.executor": "ray", "execution.workers": workers, "execution.address": nodes.address}
    size = {"cohort": {"name": "uniform", "size": COHORT}, "data.clients": CLIENTS, "evaluation.every": 10**6}
    return {"strategy": "scaffold", **place, **size, **more}


def measured(nodes: Nodes, workers: int, variant: dict[str, Any]) -> tuple[float, float]:
    """Return (clients per second, CPU milliseconds per client). The first rounds warm up, and are not counted."""
    folder = Path(tempfile.mkdtemp(dir=nodes.runs)) / "run"
    with Simulation(resolve(read(str(CONFIG), configured(nodes, workers, **variant))), folder) as simulation:
        simulation.start_workers()
        simulation.before_rounds()
        for round_ in range(ROUNDS + 2):
            if round_ == 2:
                start, cpu = time.perf_counter(), processor_seconds()
            simulation.one_round()
            simulation.commit()
        clients = ROUNDS * COHORT
        return clients / (time.perf_counter() - start), (processor_seconds() - cpu) / clients * 1e3


def table(count: int = 3) -> tuple[str, dict[str, Any]]:
    """Return the table as markdown, and its numbers.

    Args:
        count: number of nodes, each with one worker; the single node has as many workers.
    """
    found: dict[str, dict[str, list[tuple[float, float]]]] = {name: {"one": [], "several": []} for name in VARIANTS}
    for _ in range(TURNS):
        for kind, nodes_, cores in (("one", 1, count), ("several", count, 1)):
            with started(nodes_, cores) as nodes:
                for name, variant in VARIANTS.items():
                    found[name][kind].append(measured(nodes, count, variant))
                    print(name, kind, found[name][kind][-1], flush=True)
    lines = [
        f"| plan | clients/s, 1 node | {count} nodes | ratio | CPU ms per client, 1 node | {count} nodes | ratio |",
        "|---" * 7 + "|",
    ]
    for name, both in found.items():
        one, several = ([statistics.median(column) for column in zip(*both[kind])] for kind in ("one", "several"))
        rate = f"{one[0]:,.0f} | {several[0]:,.0f} | {several[0] / one[0]:.2f}"
        lines.append(f"| `{name}` | {rate} | {one[1]:.2f} | {several[1]:.2f} | {one[1] / several[1]:.2f} |")
    return "\n".join(lines) + "\n", dict(found)
