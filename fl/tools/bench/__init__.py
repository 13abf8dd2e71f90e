"""`fl bench`: our rounds beside bare torch loops and other simulators, on the same data, model, batches and cohorts.

    ours stacked x2   | a rounds |          |          | ...               each in processes of its own, all of them idle
    bare x2           |          | b rounds |          | ...               but one; as many rounds as take about a turn
    pfl x2            |          |          | c rounds | ...

Contestants take turns, so that a busy machine slows all of them; figures are medians over the turns. Before that each trains two
small rounds, and what comes of them is held against the bare loop's.

    workload.py   what all of them get             contest.py   processes, checks, turns
    report.py     bars, table, plot                experiments/benchmarks/peers   the contestants
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from fl.errors import ConfigError
from fl.tools.bench.contest import ENTRIES, Contest
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
    out: Path | None = None,
    picture: Path | None = None,
    as_json: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> int:
    """Measure workloads (names in experiments/benchmarks, or YAML files; none: all of `BARS`), each contestant for about `seconds`.
    Returns 1 if one of ours stays below a bar that was measured."""
    pythons, names, results = interpreters(sides), [entry.name for entry in ENTRIES], []
    if unknown := set(only) - {*names}:
        raise ConfigError("--only", f"{sorted(unknown)} not in {names}")
    for path in list(map(find, workloads or BARS)):
        results.append(summary(Contest(Workload.of(path, workers, device), pythons, only, seconds, say).held()))
        if out:  # after each: a long measurement may be stopped
            out.write_text(json.dumps(results, indent=2) + "\n")
    if picture:
        plot(results, picture)
    if as_json:
        print(json.dumps(results, indent=2))
    else:
        print_table(results)
    return int(any(not bar["reached"] for result in results for bar in result["bars"]))


def interpreters(sides: Sequence[Path]) -> list[Path]:
    """The pythons of side environments."""
    found = []
    for side in sides or [SIDE] * SIDE.is_dir():
        python = side / "bin" / "python"
        if not python.is_file():
            raise ConfigError(
                "--side", f"{side} is no environment: it has no bin/python. Make one with python3 -m venv {side}"
            )
        found.append(python.absolute())
    return found
