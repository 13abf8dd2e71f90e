"""Cases whose driver is killed: at calls that change files, and at random instants."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.faults import work
from experiments.faults.facts import difference, facts
from experiments.faults.methods import METHODS, configuration
from experiments.faults.processes import KILLED, end_of, start
from experiments.faults.table import Outcome

ON_RAY = ("scaffold", "three exchanges", "buffered server", "vertical epochs", "error feedback, delta")
RAY = {"executor": "ray", "workers": 2, "chunk": 2}


def cases(kills: int, ray_kills: int) -> dict[str, Callable[[Path, int], Outcome]]:
    """Return the cases by name; `kills`: of each method in one process, `ray_kills`: of each method on Ray."""
    found: dict[str, Callable[[Path, int], Outcome]] = {}
    for method in METHODS:
        found[f"driver, {method}"] = lambda out, seed, method=method: at_calls(method, out, seed, kills)
        found[f"driver in time, {method}"] = lambda out, seed, method=method: in_time(method, out, seed, kills)
    found["driver, sweep"] = lambda out, seed: sweep(out, seed, kills)
    found["driver, prolonged run"] = lambda out, seed: prolonged(out, seed, kills)
    for method in ON_RAY:
        found[f"driver on Ray, {method}"] = lambda out, seed, method=method: on_ray(method, out, seed, ray_kills)
    return found


def undisturbed(method: str, out: Path) -> tuple[dict[str, Any], int, float]:
    """Run a method without faults; return its facts, the number of calls that change files, and its seconds."""
    log, count, begin = out / "whole.log", out / "calls", time.perf_counter()
    end_of(start(work.until_call, configuration(method), out / "whole", 0, None, count, log=log), log)
    return facts(out / "whole"), int(count.read_text()), time.perf_counter() - begin


def at_calls(method: str, out: Path, seed: int, kills: int) -> Outcome:
    """Kill the driver at random calls that change files, torn writes included."""
    begin, draw = time.perf_counter(), random.Random(f"{seed} {method}")
    expected, calls, _ = undisturbed(method, out)

    def attempt(run: Path, log: Path, fatal: bool) -> int:
        number = draw.randrange(1, calls) if fatal else None
        arguments = (configuration(method), run, draw.randrange(1 << 30), number)
        return end_of(start(work.until_call, *arguments, log=log), log)

    return _killed_until(f"driver, {method}", out, kills, attempt, expected, begin)


def in_time(method: str, out: Path, seed: int, kills: int) -> Outcome:
    """Kill the driver after random times."""
    begin, draw = time.perf_counter(), random.Random(f"{seed} {method} in time")
    expected, _, seconds = undisturbed(method, out)
    attempt = _timed(configuration(method), draw, 0.1, seconds)
    return _killed_until(f"driver in time, {method}", out, kills, attempt, expected, begin)


def on_ray(method: str, out: Path, seed: int, kills: int) -> Outcome:
    """Kill the driver of a run on Ray after random times. The undisturbed run is serial."""
    begin, draw = time.perf_counter(), random.Random(f"{seed} {method} on Ray")
    expected, _, _ = undisturbed(method, out)
    attempt = _timed(configuration(method, execution=RAY), draw, 3.0, 9.0)
    return _killed_until(f"driver on Ray, {method}", out, kills, attempt, expected, begin)


def _timed(raw: Any, draw: random.Random, least: float, most: float) -> Callable[[Path, Path, bool], int]:
    def attempt(run: Path, log: Path, fatal: bool) -> int:
        process = start(work.run_or_resume, raw, run, log=log)
        if fatal:
            process.join(draw.uniform(least, most))
            process.kill()
        return end_of(process, log)

    return attempt


def sweep(out: Path, seed: int, kills: int) -> Outcome:
    """Kill a sweep that tunes, at calls that change files."""
    begin, draw, log = time.perf_counter(), random.Random(f"{seed} sweep"), out / "sweep.log"
    (out / "base.yaml").write_text(json.dumps(configuration("scaffold", rounds=6)))
    plan = {"config": "base.yaml", "seeds": 2, "tune": {"client.lr": [0.05, 0.1]}, "by": "val/accuracy"}
    plan["variants"] = {"FedAvg": {"strategy": "fedavg"}, "SCAFFOLD": {}}
    file, count = out / "sweep.yaml", out / "calls"
    file.write_text(json.dumps(plan))
    end_of(start(work.sweep_until_call, file, out / "whole", 0, None, count, log=log), log)
    expected, calls = _facts_of_sweep(out / "whole"), int(count.read_text())

    def attempt(run: Path, log: Path, fatal: bool) -> int:
        number = draw.randrange(1, calls) if fatal else None
        arguments = (file, run, draw.randrange(1 << 30), number)
        return end_of(start(work.sweep_until_call, *arguments, log=log), log)

    return _killed_until("driver, sweep", out, kills, attempt, expected, begin, _facts_of_sweep)


def _facts_of_sweep(out: Path) -> dict[str, Any]:
    found = {"chosen": (out / "chosen.json").read_text()}
    for run in sorted(out.glob("*/s*")):
        found |= {f"{run.parent.name}/{run.name}: {name}": value for name, value in facts(run).items()}
    return found


def prolonged(out: Path, seed: int, kills: int) -> Outcome:
    """Finish a run with baselines, and kill the process that gives it more rounds."""
    method = "fedavg, baselines"
    begin, draw, log = time.perf_counter(), random.Random(f"{seed} prolonged"), out / "first.log"
    rounds = configuration(method)["rounds"]
    end_of(start(work.until_call, configuration(method), out / "first", 0, None, log=log), log)
    shutil.copytree(out / "first", out / "whole")
    count = out / "calls"
    end_of(start(work.prolong, out / "whole", 2 * rounds, 0, None, count, log=log), log)
    expected, calls = facts(out / "whole"), int(count.read_text())

    def attempt(run: Path, log: Path, fatal: bool) -> int:
        if not run.exists():
            shutil.copytree(out / "first", run)
        number = draw.randrange(1, calls) if fatal else None
        return end_of(start(work.prolong, run, 2 * rounds, draw.randrange(1 << 30), number, log=log), log)

    return _killed_until("driver, prolonged run", out, kills, attempt, expected, begin)


def _killed_until(
    case: str,
    out: Path,
    kills: int,
    attempt: Callable[[Path, Path, bool], int],
    expected: dict[str, Any],
    begin: float,
    read: Callable[[Path], dict[str, Any]] = facts,
) -> Outcome:
    """Kill and resume runs until there were enough kills; compare each finished one with the undisturbed run."""
    done = resumes = 0
    for run in _directories(out):
        attempts = 0
        try:
            while attempt(run, run.with_suffix(".log"), done < kills) == KILLED:
                done, attempts = done + 1, attempts + 1
            unequal = difference(read(run), expected)
        except Exception as error:
            unequal = f"{type(error).__name__}: {error}"
        resumes += attempts
        if unequal:
            return Outcome(case, done, resumes, False, time.perf_counter() - begin, f"{run}: {unequal}"[:400])
        if done >= kills:
            return Outcome(case, done, resumes, True, time.perf_counter() - begin)
        shutil.rmtree(run)
    raise AssertionError("endless")


def _directories(out: Path) -> Iterator[Path]:
    return (out / f"run-{number}" for number in itertools.count())
