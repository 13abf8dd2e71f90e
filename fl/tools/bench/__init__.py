"""`fl bench`: our rounds beside bare torch loops and other simulators, on the same data, model, batches and cohorts.

    ours stacked x2   | a rounds |          |          | ...     each contestant has its own processes;
    bare x2           |          | b rounds |          | ...     only one works at a time, for as many
    pfl x2            |          |          | c rounds | ...     rounds as fit into a turn

Contestants take turns, because a busy machine then slows all of them; figures are medians over the turns. Before it is
measured, each contestant trains two small rounds, and its model is compared with the bare loop's.

    workload.py     what all of them get       programs.py    the programs (code: experiments/benchmarks/peers)
    processes.py    start, ask, close          comparison.py  check and turns       report.py    bars, table, plot
    kernels.py      `fl bench aggregation`: reductions of a server beside NumPy
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fl.errors import ConfigError
from fl.tools.bench import kernels
from fl.tools.bench.comparison import Comparison
from fl.tools.bench.processes import PEERS
from fl.tools.bench.programs import PROGRAMS
from fl.tools.bench.report import BARS, plot, print_table, summary
from fl.tools.bench.workload import Workload, find

SIDE = Path(".venv-peers")


def main(
    workloads: Sequence[str],
    seconds: float,
    sides: Sequence[Path] = (),
    only: Sequence[str] = (),
    workers: int | None = None,
    device: str = "cpu",
    trees: Sequence[Path] = (),
    out: Path | None = None,
    picture: Path | None = None,
    show: Callable[[list[dict[str, Any]]], None] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> int:
    """Measure workloads and print the results. Returns 1 if one of ours misses a bar that was measured, else 0.

    Args:
        workloads: names in experiments/benchmarks, or YAML files; empty for all of `BARS`. "aggregation" stands alone.
        seconds: approximate time to measure each contestant.
        sides: virtual environments with other simulators; empty for `SIDE` if it exists.
        only: beginnings of contestants' names, for example "ours" or "ours loop"; empty for all.
        workers: number of processes; None takes the workload's.
        device: cpu or cuda, of ours, of the bare loops and of pfl.
        trees: other checkouts of fl, whose rounds are measured beside ours.
        out: JSON file for the measurements, written after each workload.
        picture: file for the plot.
        show: prints the results; None prints a table.
        say: prints a line of progress.
    """
    if kernels.NAME in workloads:
        if len(workloads) > 1 or sides or only or trees or picture or device != "cpu":
            raise ConfigError(kernels.NAME, "takes no other workload and only --seconds, --workers, --out, --json")
        return kernels.main(seconds, workers, out, show, say)
    pythons, names, results = interpreters(sides), [program.name for program in PROGRAMS], []
    if unknown := [begin for begin in only if not begin.startswith(tuple(names))]:
        raise ConfigError("--only", f"{unknown}: names of contestants begin with one of {names}")
    for tree in trees:
        if not (tree / PEERS).is_dir():
            raise ConfigError("--tree", f"{tree} is no checkout of fl: it has no {PEERS}")
    trees = [tree.resolve() for tree in trees]
    for path in list(map(find, workloads or BARS)):
        # no variable holds the workload, so that its samples are freed while contestants run
        comparison = Comparison(Workload.load(path, workers, device), pythons, only, seconds, say, trees)
        results.append(summary(comparison.run()))
        if out:  # after each workload, because a long measurement may be stopped
            out.write_text(json.dumps(results, indent=2) + "\n")
    if picture:
        plot(results, picture)
    (show or print_table)(results)
    return int(any(not bar["reached"] for result in results for bar in result["bars"]))


def interpreters(sides: Sequence[Path]) -> list[Path]:
    """Interpreters of virtual environments; a `ConfigError` for a folder that is none."""
    found = []
    for side in sides or [SIDE] * SIDE.is_dir():
        python = side / "bin" / "python"
        if not python.is_file():
            raise ConfigError(
                "--side", f"{side} is no environment: it has no bin/python. Make one with python3 -m venv {side}"
            )
        found.append(python.absolute())
    return found
