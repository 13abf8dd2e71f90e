"""`fl tune`: measure a configuration's rounds on this machine, and write the execution settings that are fastest.

    a race:   | default: k rounds | a: the same k | b: the same k | default | a | b | ...    the slower half drops out

The first race compares executors and worker counts, which change no bits, with the plan of `auto`. The second race,
with the winner, compares the possible plans, their chunks, and the layouts of images. A candidate's figure is the
median ratio of its speed to the default's in the same pass, because a busy machine slows both. The default wins unless
a candidate is clearly faster (`race.is_clearly_faster`). Settings that the configuration states are kept.

Rounds are real (data, model, cohorts, codecs, ledger), but not evaluated and not committed. All candidates run in one
simulation, with one set of workers, from the same state.

    candidates.py   what can be compared      timing.py   rounds in turns      race.py   passes, winner
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fl.config.config import Config, resolve
from fl.config.reading import read
from fl.errors import ConfigError
from fl.execution.workers.limits import default_workers
from fl.simulation.workload import choose_executor
from fl.storage.yaml_text import dump
from fl.system.asynchronous import Asynchronous
from fl.tools.tune.candidates import Candidate, default_first, possible_plans, worker_counts
from fl.tools.tune.race import Race, run_race
from fl.tools.tune.timing import RoundTimer

TURN_SECONDS = 0.5  # length of a turn, unless one round takes longer
TURN_SHARE = 0.01  # of all seconds: longest turn where time is short
NO_EVALUATION = {"evaluation": {"every": 10**9, "server": False, "clients": 0}}
EXECUTION_KEYS = ("executor", "workers", "plan", "chunk", "memory_format")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Tuned:
    """Result of `tune`.

    Args:
        config: the configuration with the fastest execution, stated explicitly.
        rows: a row per candidate of both races.
        impossible: plan -> reason why it cannot train this configuration.
        kept: execution settings that the configuration states itself.
        verdicts: one sentence per race.
        machine: cores, processor and torch version.
    """

    config: Config
    rows: list[dict[str, Any]]
    impossible: Mapping[str, str]
    kept: Mapping[str, Any]
    verdicts: list[str]
    machine: str

    @property
    def execution(self) -> dict[str, Any]:
        """The `execution` section to write."""
        execution = self.config.execution
        names = ("executor", *(("workers",) if execution.executor == "ray" else ()), "plan", "chunk", "memory_format")
        return {name: getattr(execution, name) for name in names}


def tune(config: Path, overrides: Mapping[str, Any], seconds: float, out: Path, say: Say) -> Tuned:
    """Find the fastest execution and write it.

    Args:
        config: a YAML configuration file.
        overrides: changes to it, by dotted path.
        seconds: time to measure; starting and warming up come on top.
        out: file to write; it must not exist. Without overrides it extends `config`, else it is a whole configuration.
        say: prints a line of progress.
    """
    if not seconds > 0:
        raise ConfigError("seconds", f"{seconds} is not positive")
    if out.exists():
        raise ConfigError("out", f"{out} exists already; name another file with --out, or remove it")
    if not out.parent.is_dir():
        raise ConfigError("out", f"there is no folder {out.parent}")
    raw = read(config, overrides)
    resolved, measured = resolve(raw), resolve(read(config, {**overrides, **NO_EVALUATION}))
    if isinstance(resolved.server, Asynchronous):
        raise ConfigError(
            "server",
            "the steps of an asynchronous server differ too much to be compared. Tune with server=sync, and copy the "
            "section `execution` of the result",
        )
    tuned = _measure(resolved, measured, _stated(raw.get("execution") or {}), seconds, say)
    command = f"# fl tune {config} {' '.join(f'{k}={v}' for k, v in overrides.items())}".rstrip()
    header = "".join(f"{line}\n" for line in (command, *(f"# {line}" for line in (tuned.machine, *tuned.verdicts))))
    if overrides:  # a file that extends `config` could merge to something else than the overrides did
        text = dump(tuned.config.to_dict())
    else:
        base = os.path.relpath(config.resolve(), out.parent.resolve())
        text = dump({"extends": base, "execution": tuned.execution})
    out.write_text(header + text)
    return tuned


def _stated(execution: Mapping[str, Any]) -> dict[str, Any]:
    """The execution settings that a raw configuration fixes; `auto` fixes nothing."""
    stated = {key: execution[key] for key in EXECUTION_KEYS if execution.get(key) is not None}
    return {key: value for key, value in stated.items() if value != "auto"}


def _measure(config: Config, measured: Config, kept: Mapping[str, Any], seconds: float, say: Say) -> Tuned:
    """Run both races. `measured` is `config` without evaluations."""
    counts = worker_counts(measured.execution, kept, default_workers())
    with (
        tempfile.TemporaryDirectory(prefix="fl-tune-") as folder,
        RoundTimer(measured, Path(folder), counts) as timer,
    ):
        counts = default_first(counts, choose_executor(timer.run_setup))
        plan = replace(timer.run_setup.plan, why="tried")
        default = Candidate(counts[0], plan)
        timer.run(default, [0])
        first = timer.run(default, [1])
        timer.fit_turn(default, min(TURN_SECONDS, seconds * TURN_SHARE))
        plans, impossible = possible_plans(timer.run_setup, kept, first.clients)
        others = len(counts) + len(plans) - 2
        races: list[Race] = []
        if len(counts) > 1:
            field = [Candidate(count, plan) for count in counts[1:]]
            races.append(run_race(timer, "executor", default, field, seconds * len(field) / others, say))
        if len(plans) > 1:
            default = races[-1].winner if races else default
            field = [Candidate(default.workers, plan) for plan in plans[1:]]
            races.append(run_race(timer, "plan", default, field, seconds * len(field) / others, say))
        machine = json.loads((Path(folder) / "environment.json").read_text())
    best = races[-1].winner if races else default
    execution = replace(
        config.execution,
        executor="ray" if best.workers else "serial",
        workers=best.workers or config.execution.workers,
        plan=best.plan.kind,
        chunk=best.plan.chunk,
        memory_format=best.plan.memory_format,
    )
    return Tuned(
        config=replace(config, execution=execution),
        rows=[row for race in races for row in race.rows()],
        impossible=impossible,
        kept=kept,
        verdicts=[str(race) for race in races] or [f"{best}: nothing to choose"],
        machine=f"{machine['cores']} cores, {machine['processor']}, torch {machine['packages']['torch']}",
    )
