"""Cases whose workers are killed on Ray: the run itself has to reach the same bits, without a resume.

`python -m experiments.benchmarks.nodes OUT lost` kills nodes of a cluster.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from experiments.faults import work
from experiments.faults.drivers import ON_RAY, RAY, undisturbed
from experiments.faults.facts import difference, facts
from experiments.faults.instants import PLAN
from experiments.faults.methods import configuration
from experiments.faults.processes import end_of, start
from experiments.faults.table import Outcome

Run: TypeAlias = "Callable[[Any, Path, int, int, Path, Path], None]"  # configuration, folder, seed, kills, files
SITE = str(Path(__file__).parent / "worker_site")


def cases(kills: int) -> dict[str, Callable[[Path, int], Outcome]]:
    """Return the cases by name; `kills`: of the workers of each method, in each way."""
    found: dict[str, Callable[[Path, int], Outcome]] = {}
    for method in ON_RAY:
        found[f"workers in time, {method}"] = lambda out, seed, method=method: in_time(method, out, seed, kills)
        found[f"workers, {method}"] = lambda out, seed, method=method: at_calls(method, out, seed, kills)
    return found


def in_time(method: str, out: Path, seed: int, kills: int) -> Outcome:
    """Kill workers at random instants of rounds."""
    return _until(f"workers in time, {method}", _in_process(work.killing_workers), method, out, seed, kills)


def at_calls(method: str, out: Path, seed: int, kills: int) -> Outcome:
    """Kill workers at their n-th call that changes files, torn writes included."""
    return _until(f"workers, {method}", _planned, method, out, seed, kills)


def _planned(raw: Any, out: Path, seed: int, kills: int, done: Path, log: Path) -> None:
    """Run with workers that die as they plan."""
    marks = out.with_suffix(".marks")
    marks.mkdir()
    environment = {PLAN: f"{marks}:{kills}:{seed}"}
    end_of(start(work.run_with_path, raw, out, SITE, log=log, environment=environment), log)
    done.write_text(str(len(list(marks.glob("dead-*")))))


def _in_process(function: Callable[..., None]) -> Run:
    """A run in a process of its own."""

    def run(raw: Any, out: Path, seed: int, kills: int, done: Path, log: Path) -> None:
        end_of(start(function, raw, out, seed, kills, done, log=log), log)

    return run


def _until(case: str, attempt: Run, method: str, out: Path, seed: int, kills: int) -> Outcome:
    """Run until there were enough kills; compare each run with the undisturbed one."""
    begin, killed = time.perf_counter(), 0
    expected, _, _ = undisturbed(method, out)
    raw, done = configuration(method, execution=RAY), out / "killed"
    for number in itertools.count():
        run = out / f"run-{number}"
        try:
            attempt(raw, run, seed + number, kills - killed, done, out / f"run-{number}.log")
            unequal = difference(facts(run), expected)
        except Exception as error:
            unequal = f"{type(error).__name__}: {error}"
        if unequal:
            return Outcome(case, killed, 0, False, time.perf_counter() - begin, f"{run}: {unequal}"[:400])
        killed += int(done.read_text())
        if killed >= kills:
            return Outcome(case, killed, 0, True, time.perf_counter() - begin)
        shutil.rmtree(run)
    raise AssertionError("endless")
