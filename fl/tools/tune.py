"""`fl tune`: measures a configuration's own rounds on the machine at hand and writes the execution that is clearly fastest.

    a race:   | default: k rounds | a: the same k | b: the same k | default | a | b | default | a | ...    the slower half leaves, again and again

First a race of executors and workers, which change no bits, with the plan that `auto` gives; then, with the winner, one of the plans
that are possible, their chunks, the layouts of images. A candidate's figure is the median of its ratios to the default in the same pass: a
busy machine slows both. The default wins unless another is more than `CLEAR` times as fast, and faster in three of four passes, of at
least `ENOUGH`. What the configuration says explicitly is kept.

Rounds are real (data, model, cohorts, codecs, ledger), but not evaluated and not committed. All candidates run in one simulation,
with one set of workers, from the same state.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import yaml

from fl.config.config import Config, read, resolve
from fl.errors import ClientError, ConfigError
from fl.execution.section import Execution
from fl.execution.training.layout import MemoryFormat
from fl.execution.training.plan import Kind, Plan, make_plan
from fl.execution.workers.executor import Executor, Serial
from fl.execution.workers.ray import Ray
from fl.simulation.setup import RunSetup, cohort_size, inputs
from fl.simulation.simulation import Simulation
from fl.system.asynchronous import Asynchronous

CLEAR = 1.03
ENOUGH = 3  # passes to be sure of anything
MOST = 15  # passes of a race
SLOW = 4.0  # a candidate whose first two rounds take so many times as long as another's is out
TURN_SECONDS = 0.5  # unless a single round takes longer; less where there is less time
CHUNKS = (2, 0.5, 4, 0.25)  # times the default's
MANY_CORES = 8  # above it, powers of two of workers are enough

QUIET = {"evaluation": {"every": 10**9, "server": False, "clients": 0}}  # what is not measured
Say = Callable[[str], None]


@dataclass(frozen=True)
class Candidate:
    workers: int  # 0: serial
    plan: Plan

    def __str__(self) -> str:
        words = [
            f"{self.plan.kind} by {self.plan.chunk}",
            self.plan.layout * (self.plan.layout != "contiguous"),
            self.executor,
        ]
        return ", ".join(filter(None, words))

    @property
    def executor(self) -> str:
        return f"ray with {self.workers} worker{'s' * (self.workers > 1)}" if self.workers else "serial"

    @property
    def cells(self) -> dict[str, Any]:
        plan = self.plan
        return {"executor": self.executor, "plan": plan.kind, "chunk": str(plan.chunk), "layout": plan.layout}


@dataclass(frozen=True)
class Tuned:
    """What came of it."""

    config: Config  # with explicit execution
    rows: list[dict[str, Any]]  # of both races
    impossible: Mapping[str, str]  # plan -> why not
    kept: Mapping[str, Any]  # what the configuration says itself
    verdicts: list[str]
    machine: str

    @property
    def execution(self) -> dict[str, Any]:
        """What a configuration says to have it."""
        execution = self.config.execution
        names = ("executor", *(("workers",) if execution.executor == "ray" else ()), "plan", "chunk", "layout")
        return {name: getattr(execution, name) for name in names}


def tune(config: Path, overrides: Mapping[str, Any], seconds: float, out: Path, say: Say) -> Tuned:
    """Measure for about `seconds`, beside what it takes to start and warm up, and write `out`."""
    if not seconds > 0:
        raise ConfigError("seconds", f"{seconds} is not positive")
    if out.exists():
        raise ConfigError("out", f"{out} exists already; name another file with --out, or remove it")
    if not out.parent.is_dir():
        raise ConfigError("out", f"there is no folder {out.parent}")
    raw = read(config, overrides)
    resolved, quiet = resolve(raw), resolve(read(config, {**overrides, **QUIET}))
    if isinstance(resolved.server, Asynchronous):
        raise ConfigError(
            "server",
            "the steps of an asynchronous server are too unlike each other to be compared. Tune with server=sync, and copy "
            "what comes of it to `execution`",
        )
    said = raw.get("execution") or {}
    kept = {key: said[key] for key in ("executor", "workers", "plan", "chunk", "layout") if key in said}
    kept = {key: value for key, value in kept.items() if value is not None and (key, value) != ("plan", "auto")}
    with (
        tempfile.TemporaryDirectory(prefix="fl-tune-") as folder,
        _Bench(quiet, Path(folder), kept, seconds, say) as bench,
    ):
        tuned = bench.tuned(resolved)
    first = f"# fl tune {config} {' '.join(f'{k}={v}' for k, v in overrides.items())}".rstrip()
    header = "".join(f"{line}\n" for line in (first, *(f"# {line}" for line in (tuned.machine, *tuned.verdicts))))
    if overrides:  # what they merge to need not be what a file that extends the other one merges to
        text = yaml.safe_dump(tuned.config.to_dict(), sort_keys=False)
    else:
        base = os.path.relpath(config.resolve(), out.parent.resolve())
        text = yaml.safe_dump({"extends": base, "execution": tuned.execution}, sort_keys=False)
    out.write_text(header + text)
    return tuned


# -- candidates -------------------------------------------------------------------------------------------------------
def worker_counts(execution: Execution, kept: Mapping[str, Any], cores: int) -> list[int]:
    """The default first; 0 is the serial executor."""
    default = 0 if execution.executor == "serial" else execution.workers or cores
    if "workers" in kept or execution.executor == "serial" or execution.address:
        return [default]
    counts = range(1, cores + 1) if cores <= MANY_CORES else [2**k for k in range(cores.bit_length()) if 2**k < cores]
    others = ([] if "executor" in kept else [0]) + [count for count in counts if count != default]
    return [default, *others]


def plans(run_setup: RunSetup, kept: Mapping[str, Any], cohort: int) -> tuple[list[Plan], dict[str, str]]:
    """(the possible ones, the default first; of the other kinds why not)."""
    config, found, impossible = run_setup.config, [run_setup.plan], {}

    def make(kind: Kind, chunk: int | None = None, layout: MemoryFormat | None = None) -> Plan:
        execution = replace(config.execution, plan=kind, chunk=chunk, layout=layout)
        given = run_setup.module, run_setup.model, run_setup.periods[0].task, inputs(run_setup.dataset)
        return make_plan(config.client, *given, execution, cohort_size(config), bool(config.data.augment))

    for kind in [kept["plan"]] if "plan" in kept else get_args(Kind):
        try:
            base = make(kind, kept.get("chunk"), kept.get("layout"))
        except ValueError as error:
            impossible[kind] = str(error).partition("is not possible: ")[2].partition(". Use ")[0] or str(error)
            continue
        found.append(base)
        if base.layout != "contiguous" and "layout" not in kept:
            found += [replace(base, layout=layout) for layout in get_args(MemoryFormat) if layout != base.layout]
        if base.chunk > 1 and "chunk" not in kept:
            top = 1 << max(0, cohort - 1).bit_length()  # larger ones are the same
            chunks = [int(min(base.chunk, top) * times) for times in CHUNKS]
            found += [replace(base, chunk=chunk) for chunk in chunks if 1 <= chunk <= top]
    return list(dict.fromkeys(replace(plan, why="tried") for plan in found)), impossible


@dataclass
class Race:
    """Candidates beside a default. pairs: clients per second of each, and the default's in the same pass."""

    name: str
    default: Candidate
    pairs: dict[Candidate, list[tuple[float, float]]]
    out: dict[Candidate, str] = field(default_factory=dict)  # why one was not measured

    @property
    def winner(self) -> Candidate:
        sure = [candidate for candidate, pairs in self.pairs.items() if clear(pairs)]
        return max(sure, key=lambda candidate: quartiles(self.pairs[candidate])[1], default=self.default)

    def rows(self) -> Iterator[dict[str, Any]]:
        for candidate, pairs in self.pairs.items():
            rates, ratio = [own for own, _ in pairs], ""
            if pairs and candidate != self.default:
                low, middle, high = quartiles(pairs)
                ratio = f"{middle:.2f} ({low:.2f} to {high:.2f})"
            speed = {"clients/s": statistics.median(rates) if rates else None, "passes": len(pairs)}
            words = [
                self.out.get(candidate, ""),
                "default" * (candidate == self.default),
                "wins" * (candidate == self.winner),
            ]
            yield {
                "race": self.name,
                **candidate.cells,
                **speed,
                "beside the default": ratio,
                "": ", ".join(filter(None, words)),
            }

    def __str__(self) -> str:
        pairs = self.pairs[self.winner]
        if not pairs:
            return f"{self.name}: {self.default}, no time to compare"
        speed = f"{statistics.median(own for own, _ in pairs):,.0f} clients/s"
        if self.winner == self.default:
            return f"{self.name}: {self.default}, {speed}; nothing is clearly faster"
        low, middle, high = quartiles(pairs)
        return f"{self.name}: {self.winner}, {speed}, {middle:.2f} ({low:.2f} to {high:.2f}) times {self.default}"


def quartiles(pairs: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Of the ratios of pairs."""
    low, middle, high = np.quantile([own / beside for own, beside in pairs], (0.25, 0.5, 0.75))
    return float(low), float(middle), float(high)


def clear(pairs: Sequence[tuple[float, float]]) -> bool:
    """Whether the first of each pair is faster, beyond doubt."""
    if len(pairs) < ENOUGH:
        return False
    low, middle, _ = quartiles(pairs)
    return middle > CLEAR and low > 1


# -- measuring --------------------------------------------------------------------------------------------------------
class _Bench:
    """A simulation whose rounds are run as candidates have it."""

    def __init__(self, config: Config, folder: Path, kept: Mapping[str, Any], seconds: float, say: Say):
        self.kept, self.seconds, self.say = kept, seconds, say
        cores = torch.multiprocessing.cpu_count()
        self.counts = worker_counts(config.execution, kept, cores)
        self.executors: dict[bool, Executor] = {}  # whether it has workers of its own -> which
        if max(self.counts):
            self.executors[True] = Ray(max(self.counts), config.execution.address, config.execution.device == "cuda")
        if 0 in self.counts:
            self.executors[False] = Serial()
        self.simulation = Simulation(config, folder, executor=next(iter(self.executors.values())))
        self.assemblies: dict[Plan, RunSetup] = {}
        self.last: dict[Candidate, float] = {}  # seconds of the latest turn
        self.rounds: dict[Candidate, int] = {}  # and its rounds
        self.length = 1  # rounds of a turn

    def __enter__(self) -> _Bench:
        with ExitStack() as stack:
            simulation = stack.enter_context(self.simulation)
            stack.callback(setattr, simulation, "executor", simulation.executor)  # it closes the one it has
            simulation.begin()
            for other in list(self.executors.values())[1:]:
                other.start(simulation.job, simulation.states)
                stack.callback(other.close)
            simulation.setup()
            self.state, self.sampler = simulation.state, simulation.sampler
            self.record = copy.deepcopy(simulation.exchanges.record())
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_: Any) -> None:
        self.stack.close()

    def tuned(self, config: Config) -> Tuned:
        """Both races, and what comes of them."""
        plan = replace(self.simulation.run_setup.plan, why="tried")
        default = Candidate(self.counts[0], plan)
        self._turn(default, [0])
        cohort = round(self._turn(default, [1]) * self.last[default])  # a first look at what rounds take
        self.length = max(1, round(min(TURN_SECONDS, self.seconds / 100) / self.last[default]))
        found, impossible = plans(self.simulation.run_setup, self.kept, cohort)
        others = len(self.counts) + len(found) - 2
        races = []
        if len(self.counts) > 1:
            field = [Candidate(count, plan) for count in self.counts[1:]]
            races.append(self._race("executor", default, field, self.seconds * len(field) / others))
        if len(found) > 1:
            default = races[-1].winner if races else default
            field = [Candidate(default.workers, plan) for plan in found[1:]]
            races.append(self._race("plan", default, field, self.seconds * len(field) / others))
        best = races[-1].winner if races else default
        execution = replace(
            config.execution,
            executor="ray" if best.workers else "serial",
            workers=best.workers or None,
            plan=best.plan.kind,
            chunk=best.plan.chunk,
            layout=best.plan.layout,
        )
        machine = json.loads((self.simulation.directory / "environment.json").read_text())
        told = f"{machine['cores']} cores, {machine['processor']}, torch {machine['packages']['torch']}"
        verdicts = [str(race) for race in races] or [f"{best}: nothing to choose"]
        rows = [row for race in races for row in race.rows()]
        return Tuned(replace(config, execution=execution), rows, impossible, self.kept, verdicts, told)

    # -- races ----------------------------------------------------------------------------------------------------
    def _race(self, name: str, default: Candidate, field: list[Candidate], seconds: float) -> Race:
        self.say(f"{name}: {len(field)} beside the default, for about {seconds:.0f} s")
        race = Race(name, default, {candidate: [] for candidate in (default, *field)})
        field = self._entered(race, seconds)
        deadline = time.perf_counter() + seconds
        for number in range(MOST):
            if not field or time.perf_counter() + self._takes([default, *field]) > deadline:
                break
            rounds = self._rounds(number)
            beside = self._turn(default, rounds)
            race.pairs[default].append((beside, beside))
            for candidate in field:
                race.pairs[candidate].append((self._turn(candidate, rounds), beside))
            if number % 2 == 0 and number + 1 >= ENOUGH:
                field = sorted(field, key=lambda c: -quartiles(race.pairs[c])[1])[: -(-len(field) // 2)]
        return race

    def _entered(self, race: Race, seconds: float) -> list[Candidate]:
        """Those who can, and of them, by the rounds that they warm up with, as many as there is time for. Warming up takes half
        of the race's seconds again; who has not begun by then stays out."""
        took: dict[Candidate, float] = {}
        deadline = time.perf_counter() + seconds / 2
        for candidate in race.pairs:
            if time.perf_counter() > deadline:
                race.out[candidate] = "no time for it"
                continue
            try:
                took[candidate] = self._warmed_up(candidate, min(took.values(), default=0.0))
            except ClientError as error:
                if candidate == race.default:
                    raise
                race.out[candidate] = str(error).partition("\n")[0]
                continue
            if candidate == race.default:
                dropped = self.dropped
            elif self.dropped > dropped:
                race.out[candidate] = f"{self.dropped} clients fail"
        quickest = min(took.values())
        field = sorted((c for c in took if c not in race.out and c != race.default), key=took.__getitem__)
        for candidate in reversed(field.copy()):
            late = ENOUGH * self._takes([race.default, *field]) > seconds and len(field) > 1
            if late or took[candidate] > SLOW * quickest:
                race.out[candidate] = f"a round of {took[candidate]:.2f} s, another's {quickest:.2f} s"
                field.remove(candidate)
        return field

    def _warmed_up(self, candidate: Candidate, quickest: float) -> float:
        """The seconds of its first round; if that took long, of its second if it is quicker: the first may compile or allocate."""
        self._turn(candidate, [0])
        first = self.last[candidate]
        if first > SLOW * quickest:
            self._turn(candidate, [0])
        return min(first, self.last[candidate])

    def _takes(self, field: list[Candidate]) -> float:
        """Seconds of a turn of each."""
        return sum(self.last[candidate] * self.length / self.rounds[candidate] for candidate in field)

    # -- turns ----------------------------------------------------------------------------------------------------
    def _rounds(self, number: int) -> list[int]:
        """Those of a pass: of the first stage, its last one left out, again and again."""
        cycle = max(2, int(self.simulation.run_setup.ends[0]) - 1)
        return [r % cycle for r in range(number * self.length, (number + 1) * self.length)]

    def _turn(self, candidate: Candidate, rounds: list[int]) -> float:
        """Clients per second."""
        simulation, plan = self.simulation, candidate.plan
        if plan not in self.assemblies:
            execution = replace(simulation.config.execution, plan=plan.kind, chunk=plan.chunk, layout=plan.layout)
            config = replace(simulation.config, execution=execution)
            self.assemblies[plan] = replace(simulation.run_setup, config=config, plan=plan)
        simulation.run_setup = simulation.exchanges.run_setup = self.assemblies[plan]
        simulation.executor = simulation.exchanges.executor = self.executors[candidate.workers > 0]
        if isinstance(simulation.executor, Ray):
            simulation.executor.at_work = candidate.workers
        simulation.state, simulation.sampler = self.state, self.sampler
        simulation.exchanges.restore(copy.deepcopy(self.record))
        simulation.pending.clear()
        start = time.perf_counter()
        for simulation.round in rounds:
            simulation.one_round()
        self.last[candidate], self.rounds[candidate] = time.perf_counter() - start, len(rounds)
        clients, self.dropped = (sum(row[key] for row in simulation.pending) for key in ("cohort_size", "dropped"))
        simulation.folder.forget()
        simulation.states.commit()  # so that the dead states of many turns do not fill the disk
        simulation.states.sweep()
        return clients / self.last[candidate]
