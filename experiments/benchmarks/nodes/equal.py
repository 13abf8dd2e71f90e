"""Table of digests on several nodes beside those of the serial executor, and of bytes between nodes per round."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks.nodes.cluster import Nodes, started
from experiments.benchmarks.nodes.methods import METHODS, configured
from fl.config.config import resolve
from fl.config.reading import read
from fl.execution.workers.ray import Ray
from fl.execution.workers.ray_pool import keep_workers
from fl.simulation.run import run
from fl.simulation.simulation import Simulation
from fl.tracking.callback import Callback

KINDS = ("dispatch", "states_down", "result", "states_up")


def on_nodes(
    method: str,
    nodes: Nodes,
    workers: int,
    callbacks: Sequence[Callback] = (),
    more: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run a method on a cluster.

    Returns:
        digest, number of nodes with workers, rounds, seconds of the slowest round, bytes between nodes by kind.
    """
    place = {"execution.executor": "ray", "execution.workers": workers, "execution.address": nodes.address}
    folder = Path(tempfile.mkdtemp(dir=nodes.runs)) / "run"
    with Simulation(resolve(read(configured(method, more), place)), folder) as simulation:
        result = simulation.run(callbacks)
        assert isinstance(simulation.executor, Ray)
        used = {member.node for member in simulation.executor.members}
        traffic = dict(simulation.executor.transfer.traffic)
    seconds = [row["wall_seconds"] for row in result.metrics]
    facts = {"nodes": len(used), "rounds": len(seconds), "slowest": max(seconds), "traffic": traffic}
    return {"digest": result.digest, **facts}


def serial(method: str, more: dict[str, Any] | None = None) -> str:
    """Return the digest of a method in one process; `more` as in `configured`."""
    with tempfile.TemporaryDirectory() as folder:
        return run(configured(method, more), out=Path(folder) / "run").digest


def table(count: int = 3) -> tuple[str, dict[str, Any]]:
    """Return the table as markdown, and its numbers.

    Args:
        count: number of nodes, each with one worker.
    """
    lines = [
        f"| method on {count} nodes | equal to serial | " + " | ".join(f"{kind}, KB a round" for kind in KINDS) + " |",
        "|---" * (2 + len(KINDS)) + "|",
    ]
    found: dict[str, Any] = {}
    with started(count) as nodes, keep_workers():
        for method in METHODS:
            one = found[method] = on_nodes(method, nodes, count) | {"serial": serial(method)}
            numbers = [f"{one['traffic'].get(kind, 0) / one['rounds'] / 1e3:.1f}" for kind in KINDS]
            equal = "yes" if one["digest"] == one["serial"] else "NO"
            lines.append(f"| {method} | {equal} | " + " | ".join(numbers) + " |")
            print(lines[-1], flush=True)
        found |= {"violations": nodes.violations(), "guarded": nodes.guarded()}
    lines.append(f"\n{len(found['violations'])} attempts to open a file of another node or of the driver.\n")
    return "\n".join(lines), found
