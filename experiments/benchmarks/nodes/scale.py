"""What clusters of 10, 100 and 1,000 nodes would do: a calculation from measurements on a few local nodes."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.nodes.cluster import Nodes, started
from experiments.benchmarks.nodes.rates import CLIENTS, COHORT, CONFIG, configured
from fl.config.config import resolve
from fl.config.reading import read
from fl.simulation.simulation import Simulation

ROUNDS = 5
CLIENTS_PER_NODE, CLIENT_SECONDS, LINK = 100, 0.1, 1.25e9  # of the calculation; bytes a second of a 10 Gbit link
SIZES = (10, 100, 1000)


def measured(nodes: Nodes, count: int) -> dict[str, float]:
    """Run SCAFFOLD on `count` nodes; return times in seconds and bytes, per round."""
    folder = Path(tempfile.mkdtemp(dir=nodes.runs)) / "run"
    with Simulation(resolve(read(str(CONFIG), configured(nodes, count))), folder) as simulation:
        simulation.start_workers()
        simulation.before_rounds()
        cpu, commits, bytes_ = [], [], []
        transfer = simulation.executor.transfer  # type: ignore[attr-defined]  # it is a Ray
        for _ in range(ROUNDS):
            before, start = dict(transfer.traffic), time.process_time()
            simulation.one_round()
            cpu.append(time.process_time() - start)
            bytes_.append({kind: n - before.get(kind, 0) for kind, n in transfer.traffic.items()})
            start = time.perf_counter()
            simulation.commit()
            commits.append(time.perf_counter() - start)
    kinds = {kind: statistics.median(one.get(kind, 0) for one in bytes_[1:]) for kind in bytes_[-1]}
    state = int(simulation.states.locations(np.arange(CLIENTS))[:, 2].max())
    return {"state": state, "driver": statistics.median(cpu[1:]), "commit": statistics.median(commits[1:]), **kinds}


def table(count: int = 3) -> tuple[str, dict[str, Any]]:
    """Return measurements on 1 to `count` + 1 nodes and the calculation as markdown, and the numbers."""
    found: dict[int, dict[str, float]] = {}
    with started(1) as nodes:
        for k in range(1, count + 2):
            found[k] = measured(nodes, k)
            if k <= count:
                nodes.add()
    return calculated(found), {"measured": found}


def calculated(found: dict[int, dict[str, float]]) -> str:
    """Return measurements by number of nodes, 1 and more, and what larger clusters would do, as markdown."""
    kinds = ("dispatch", "states_down", "result", "states_up")
    lines = ["| nodes | driver, CPU ms a round | commit, ms | " + " | ".join(f"{kind}, MB" for kind in kinds) + " |"]
    lines.append("|---" * (3 + len(kinds)) + "|")
    for k, one in found.items():
        numbers = [f"{one.get(kind, 0) / 1e6:.1f}" for kind in kinds]
        lines.append(f"| {k} | {one['driver'] * 1e3:.0f} | {one['commit'] * 1e3:.0f} | {' | '.join(numbers)} |")
    far = [(k, one) for k, one in found.items() if k > 1]
    dispatch, result = (statistics.median(one[kind] / (k - 1) for k, one in far) for kind in ("dispatch", "result"))
    state = max(one["state"] for _, one in far)
    again = statistics.median(one["states_down"] / one["states_up"] for _, one in far)  # the others are on the node
    moved = sum(one[kind] for _, one in far for kind in kinds)
    copy = max(sum(one["driver"] - found[1]["driver"] for _, one in far), 0.0) / moved  # CPU seconds a byte
    lines += [
        "",
        f"A dispatch has {dispatch / 1e6:.1f} MB for each node, its results {result / 1e6:.1f} MB, a state",
        f"{state / 1e6:.2f} MB. {again:.0%} of the states travel down. The driver spends {copy * 1e9:.1f} CPU seconds",
        "for each GB.",
        "",
        "| nodes | clients a round | GB down | GB up | driver's CPU, s | link, s | training, s | SCAFFOLD or FedAvg |",
        "|---" * 8 + "|",
    ]
    for n, size in itertools.product(SIZES, (state, 0)):
        clients = n * CLIENTS_PER_NODE
        down, up = n * dispatch + again * clients * size, n * result + clients * size
        driver, training = found[1]["driver"] * clients / COHORT + copy * (down + up), CLIENTS_PER_NODE * CLIENT_SECONDS
        times = f"{driver:.1f} | {(down + up) / LINK:.1f} | {training:.0f} | {'SCAFFOLD' if size else 'FedAvg'}"
        lines.append(f"| {n:,} | {clients:,} | {down / 1e9:.2f} | {up / 1e9:.2f} | {times} |")
    return "\n".join(lines) + "\n"
