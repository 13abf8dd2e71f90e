"""Comparison of contestants on one workload: start all, check each against the bare loop, warm up, measure in turns.

A program may offer several contestants, for example one for each plan.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fl.storage.run import machine
from fl.tools.bench.processes import ContestantFailed, Processes, environment
from fl.tools.bench.programs import OURS, PROGRAMS, REFERENCES, Program, find_environments
from fl.tools.bench.workload import FOLDER, Workload

TURNS = 7
MAX_OVERTIME = 3  # a contestant with long rounds sits out once it has used this many times its seconds
# Largest distance from the bare loop's model, relative to how far the bare loop moved. With the same batches it is
# about 1e-6 without convolutions; in cnn_small, max-pools turn first weights that differ in the last bit into 0.03.
TOLERANCE = 0.1
OWN_BATCHES_TOLERANCE = 0.5

Say = Callable[[str], None]


@dataclass
class Contestant:
    """One way to train that a program offers, and its measurements.

    Args:
        name: name in the table.
        processes: the program.
        offered_as: its name in the program.
        facts: what it says about itself: versions and settings.
        program: the program's entry.
    """

    name: str
    processes: Processes
    offered_as: str
    facts: dict[str, Any]
    program: Program
    turn_rounds: int = 1
    rounds_done: int = 0
    seconds_used: float = 0.0
    round_seconds: float = 0.0
    speeds: list[float | None] = field(default_factory=list)  # samples per second in each turn; None: sat out
    ledger_shares: list[float] = field(default_factory=list)  # of ours: the ledger's share of the time in each turn
    distance: float | None = None
    failure: str = ""

    def rounds_in(self, seconds: float) -> int:
        """Number of rounds that take about `seconds`."""
        return max(1, round(seconds / self.round_seconds)) if self.round_seconds else 1

    def run(self, rounds: int) -> float:
        """Run rounds; returns samples per second of all processes together."""
        span = [self.rounds_done, self.rounds_done + rounds]
        answers = self.processes.ask({"of": self.offered_as, "rounds": span})
        seconds = max(answer["seconds"] for answer in answers)
        self.rounds_done += rounds
        self.seconds_used += seconds
        self.round_seconds = seconds / rounds
        if "ledger" in answers[0]:
            self.ledger_shares.append(answers[0]["ledger"] / seconds)
        return sum(answer["samples"] / answer["seconds"] for answer in answers)

    def checked_model(self, file: Path) -> np.ndarray:
        """All weights after the rounds of the check, (parameters,). Independent copies of a loop all write the same."""
        self.processes.ask({"of": self.offered_as, "check": str(file)})
        return _flat(file)


class Comparison:
    """Contestants on a workload.

    Args:
        workload: data, model and cohorts.
        pythons: interpreters of side environments.
        only: beginnings of the names of contestants to run beside `REFERENCES`; empty for all.
        seconds: time to measure each contestant.
        say: prints a line of progress.
        trees: checkouts of fl whose own rounds take part, too.
    """

    def __init__(
        self,
        workload: Workload,
        pythons: Sequence[Path],
        only: Sequence[str],
        seconds: float,
        say: Say,
        trees: Sequence[Path] = (),
    ):
        self.workload, self.pythons, self.only, self.seconds, self.say = workload, pythons, only, seconds, say
        self.trees, self.name, self.path = trees, workload.name, workload.path
        self.missing: dict[str, str] = {}
        self.running: list[Processes] = []

    def run(self) -> dict[str, Any]:
        """Measure: facts of the workload, results of each contestant, and reasons why others are missing."""
        workload = self.workload
        workers, samples = workload.workers, float(workload.sizes.mean())
        config = workload.run_setup.config
        facts = {
            "workload": workload.name,
            "workers": workers,
            "device": workload.device,
            "parameters": workload.run_setup.model.numel,
            "cohort": len(config.cohort.sample(None, 0, config.seed, workload.sizes)[1]),
            "samples": samples,
            "flops": workload.flops,
            "machine": machine(),
        }
        with tempfile.TemporaryDirectory() as folder:
            workload.write(Path(folder))
            del self.workload, workload, config  # frees the samples, which contestants read from the folder
            try:
                found = [*self._start(Path(folder), workers), *self._start_trees(Path(folder), facts)]
                self._check(found, Path(folder))
                self._measure(found)
            except BaseException:  # such as a signal: contestants may be in the middle of long rounds
                for processes in self.running:
                    processes.kill()
                raise
            finally:
                for processes in self.running:
                    processes.close()
        return facts | {"contestants": {c.name: _result(c, samples) for c in found}, "missing": self.missing}

    def _start(self, folder: Path, workers: int) -> Iterator[Contestant]:
        wanted = [p for p in PROGRAMS if not self.only or p.name in REFERENCES or self._may_offer(p)]
        pythons = [*self.pythons, Path(sys.executable)]
        environments = find_environments(pythons, [p.package for p in wanted if p.package])
        for program in wanted:
            python = Path(sys.executable) if program.package is None else environments.get(program.package)
            if python is None:
                self.missing[program.name] = f"{program.package} is in no side environment"
                continue
            for copies in dict.fromkeys(workers if p == "k" else int(p) for p in program.processes):
                self.say(f"{self.name}: {program.name} x{copies} starts")
                several = f" x{copies}" if len(program.processes) > 1 else ""
                self.running.append(Processes(python, program.script, copies, folder))
                yield from self._offered(self.running[-1], program, several)

    def _start_trees(self, folder: Path, facts: dict[str, Any]) -> Iterator[Contestant]:
        """Contestants of other checkouts, from a workload that each writes itself."""
        for tree in self.trees:
            self.say(f"{self.name}: {tree.name} starts")
            own = folder / tree.name
            own.mkdir()
            source = self.name if self.path.parent == FOLDER else str(self.path.absolute())
            command = [sys.executable, "-m", "fl.tools.bench.workload", source, str(own)]
            command += [str(facts["workers"]), facts["device"]]
            written = subprocess.run(command, env=environment(tree), cwd=tree, capture_output=True, text=True)
            if written.returncode:
                self.missing[tree.name] = written.stderr[-1000:]
                continue
            self.running.append(Processes(Path(sys.executable), OURS.script, 1, own, tree))
            for contestant in self._offered(self.running[-1], OURS, ""):
                contestant.name = f"{tree.name}: {contestant.name}"
                yield contestant

    def _offered(self, processes: Processes, program: Program, several: str) -> Iterator[Contestant]:
        """Yield the contestants of a started program that `only` selects. `several` is the end of their names."""
        try:
            answer = processes.answers()[0]
        except ContestantFailed as failure:
            answer = {"unavailable": str(failure)}
        if "unavailable" in answer:
            self.missing[f"{program.name} x{len(processes.processes)}"] = answer["unavailable"]
        for offered_as, facts in answer.get("ready", {}).items():
            if not self.only or program.name in REFERENCES or offered_as.startswith(tuple(self.only)):
                yield Contestant(offered_as + several, processes, offered_as, facts, program)

    def _may_offer(self, program: Program) -> bool:
        return any(begin.startswith(program.name) for begin in self.only)

    def _check(self, found: list[Contestant], folder: Path) -> None:
        """Compare each model after two small rounds with the bare loop's."""
        first, bare = _flat(folder / "first.npz"), None
        for contestant in sorted(found, key=lambda c: c.offered_as != "bare"):
            if contestant.offered_as == "peak":
                continue
            self.say(f"{self.name}: checking {contestant.name}")
            try:
                model = contestant.checked_model(folder / "check.npz")
            except ContestantFailed as failure:
                contestant.failure = str(failure)
                continue
            bare = model if bare is None else bare
            contestant.distance = float(np.linalg.norm(model - bare) / np.linalg.norm(bare - first))
            allowed = OWN_BATCHES_TOLERANCE if contestant.program.own_batches else TOLERANCE
            if not contestant.distance <= allowed:
                contestant.failure = (
                    f"its model differs from the bare loop's by {contestant.distance:.2g} of the bare loop's change"
                )

    def _measure(self, found: list[Contestant]) -> None:
        for contestant in found:
            self.say(f"{self.name}: {contestant.name} warms up")
            for share in (0.0, 0.0, 0.25):  # of a turn; the last one tells how long a round is
                if not share or contestant.round_seconds < self.seconds:
                    self._turn(contestant, contestant.rounds_in(share * self.seconds / TURNS))
            contestant.turn_rounds = contestant.rounds_in(self.seconds / TURNS)
            contestant.speeds, contestant.ledger_shares, contestant.seconds_used = [], [], 0.0
        for turn in range(TURNS):
            self.say(f"{self.name}: turn {turn + 1} of {TURNS}")
            for contestant in found if turn % 2 == 0 else reversed(found):  # both orders: neither has an advantage
                self._turn(contestant, contestant.turn_rounds)

    def _turn(self, contestant: Contestant, rounds: int) -> None:
        if contestant.failure:
            return
        try:
            sits_out = contestant.seconds_used >= MAX_OVERTIME * self.seconds
            contestant.speeds.append(None if sits_out else contestant.run(rounds))
        except ContestantFailed as failure:
            contestant.failure = str(failure)


def _flat(file: Path) -> np.ndarray:
    """All arrays of an .npz file, one after another in name order."""
    with np.load(file) as weights:
        return np.concatenate([weights[name].ravel() for name in sorted(weights)])


def _result(contestant: Contestant, samples: float) -> dict[str, Any]:
    """Measurements of a contestant, in clients per second for clients with `samples` samples."""
    speeds = [None if s is None else s / samples for s in contestant.speeds]
    done = [s for s in speeds if s is not None]
    result: dict[str, Any] = {
        "facts": contestant.facts,
        "distance": contestant.distance,
        "rounds_per_turn": contestant.turn_rounds,
    }
    if contestant.ledger_shares:
        result["ledger_share"] = statistics.median(contestant.ledger_shares)
    if contestant.failure or not done:
        return result | {"failed": contestant.failure or "no turn"}
    return result | {"clients_per_second": statistics.median(done), "turns": speeds}
