"""2,000 rounds of a stateful method: memory and handles stay flat, and the run directory grows as it has to."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fl
from experiments.faults.facts import difference, facts
from experiments.faults.methods import configuration
from experiments.faults.processes import end_of, start
from experiments.faults.table import Outcome

METHOD = "error feedback, delta"
MEASURED = 20  # measurements of a run
MEMORY = 1.05  # allowed growth of memory within each half of a run, as a factor
SETTLED = 1_000  # rounds from which memory and files are judged
FOLDERS = ("metrics.jsonl", "streams", "clients", "checkpoints", "scratch")


def cases(rounds: int) -> dict[str, Callable[[Path, int], Outcome]]:
    """Return the case by name."""
    return {f"{rounds:,} rounds, {METHOD}": lambda out, seed: flat(out, rounds)}


class Gauge(fl.Callback):
    """Measures this process and the run directory from time to time.

    Args:
        out: the run directory.
        every: rounds between two measurements.
    """

    def __init__(self, out: Path, every: int):
        self.out, self.every, self.rows = out, every, list[dict[str, int]]()

    def round(self, row: Any) -> None:
        if row["round"] % self.every == 0:
            sizes = {name: _bytes(self.out / name) for name in FOLDERS}
            handles, files = len(os.listdir("/proc/self/fd")), sum(1 for _ in self.out.rglob("*"))
            self.rows.append({"kilobytes": _memory(), "handles": handles, "files": files, **sizes})


def run(raw: Any, out: Path, every: int, gauge: Path) -> None:
    """Run, and write the measurements to a file. Half of the way the run is interrupted and resumed."""
    seen = Gauge(out, every)
    half, rounds = iter(range(raw["rounds"])), raw["rounds"]
    fl.run(raw, out=out, progress=False, callbacks=[seen], interrupt=lambda: next(half) == rounds // 2)
    fl.resume(out, progress=False, callbacks=[seen])
    gauge.write_text(json.dumps(seen.rows))


def flat(out: Path, rounds: int) -> Outcome:
    """Run many rounds with an interruption, and without; compare the bits and the measurements."""
    begin, log, gauge = time.perf_counter(), out / "run.log", out / "gauge"
    raw = configuration(METHOD, rounds=rounds, model="softmax", evaluation={"every": rounds // 4})
    end_of(start(run, raw, out / "run", rounds // MEASURED, gauge, log=log), log, 3000)
    rows = json.loads(gauge.read_text())
    end_of(start(_whole, raw, out / "whole", log=log), log, 3000)
    unequal = difference(facts(out / "run"), facts(out / "whole"))
    early, last = rows[len(rows) // 4], rows[-1]
    # files wait for the commits that a power cut may undo, a second of rounds: many in a short run
    counted = ("handles", "files") if rounds >= SETTLED else ("handles",)
    grown = [name for name in counted if last[name] > early[name] + 8]
    half = len(rows) // 2  # the resumed half is another run in the same process
    parts = [[row["kilobytes"] for row in part] for part in (rows[:half], rows[half + 1 :])]
    if rounds >= SETTLED and any(part[-1] > MEMORY * part[len(part) // 2] for part in parts):
        grown.append("memory")
    memory = ", ".join(f"{part[len(part) // 2]:,} -> {part[-1]:,}" for part in parts)
    sizes = ", ".join(f"{name} {early[name]:,} -> {last[name]:,}" for name in FOLDERS)
    notes = f"memory {memory} kB, handles {early['handles']} -> "
    notes += f"{last['handles']}, files {early['files']} -> {last['files']}, bytes of {sizes}"
    notes = f"{unequal or ''}{' GROWS: ' + ', '.join(grown) if grown else ''} {notes}".strip()
    name = f"{rounds:,} rounds, {METHOD}"
    return Outcome(name, rounds, 1, not unequal and not grown, time.perf_counter() - begin, notes)


def _whole(raw: Any, out: Path) -> None:
    fl.run(raw, out=out, progress=False)


def _bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _memory() -> int:
    """Proportional set size of this process, kB: shared pages count for a part."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("Pss:")))
