"""The contestants of a workload: started, checked, and asked for rounds in turns.

a Script is k processes of one program, a Contestant one of the names it offers      (experiments/benchmarks/peers/protocol.py)

start all -> check each against the bare loop -> a round to warm up, one to see how many make a turn -> turns
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import fl
from fl.storage.run import machine
from fl.tools.bench.workload import FOLDER, Workload

PEERS = FOLDER / "peers"
Say = Callable[[str], None]
TURNS = 7
SHARE = 3  # times its seconds, after which a contestant whose rounds are long takes no more turns
ANSWER = 900  # seconds for any answer
CLOSE = 20  # seconds to end in
# relative distance from the bare loop's change: of the same batches (1e-6 without convolutions; in cnn_small max-pools make 0.03 of
# first weights that differ in the last bit), and of other batches
GIVEN, OWN = 0.1, 0.5


@dataclass(frozen=True)
class Entry:
    """A program among the contestants: `needs` the package, in a side environment or ours; processes of each of its runs, `k` for
    the workload's workers; `own`: it fills up batches in its own way."""

    name: str
    script: str
    needs: str | None
    processes: tuple[int | str, ...] = (1,)
    own: bool = False


ENTRIES = (
    Entry("peak", "peak", None, ("k",)),
    Entry("bare", "bare", None, (1, "k")),
    Entry("ours", "ours", None),
    Entry("pfl", "pfl_research", "pfl", (1, "k")),
    Entry("flower", "flower", "flwr"),
    Entry("fedjax", "fed_jax", "fedjax", own=True),
    Entry("blazefl", "blaze_fl", "blazefl"),
    Entry("jax", "plain_jax", "jax", (1, "k")),
)
ALWAYS = ("peak", "bare")  # what the others are held against


class Lost(Exception):
    """A contestant that does not answer, or not what it should."""


class Script:
    """`copies` processes of one program."""

    def __init__(self, python: Path, script: str, copies: int, folder: Path):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        self.name, self.complaints = script, tempfile.TemporaryFile("w+")
        own = {"PYTHONPATH": os.pathsep.join([str(PEERS), str(Path(fl.__file__).parent.parent)])} | ONE_THREAD
        self.processes = [
            subprocess.Popen(
                [str(python), str(PEERS / f"{script}.py"), str(folder), str(share), str(copies), str(port)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.complaints,
                env=os.environ | own,
                start_new_session=True,
                bufsize=0,
            )
            for share in range(copies)
        ]

    def ask(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        """Of all processes at once."""
        try:
            for process in self.processes:
                process.stdin.write((json.dumps(message) + "\n").encode())  # type: ignore[union-attr]
        except BrokenPipeError:
            raise Lost(self._last_words()) from None
        return self.answers()

    def answers(self) -> list[dict[str, Any]]:
        end = time.monotonic() + ANSWER
        return [self._line(process, end) for process in self.processes]

    def _line(self, process: subprocess.Popen, end: float) -> dict[str, Any]:
        text = b""
        while not text.endswith(b"\n"):
            if not select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                raise Lost(f"no answer in {ANSWER} s")
            more = process.stdout.read(1 << 16)  # type: ignore[union-attr]
            if not more:
                raise Lost(self._last_words())
            text += more
        return json.loads(text)

    def _last_words(self) -> str:
        self.complaints.seek(0)
        return (self.complaints.read().strip() or "ended without a word")[-1000:]

    def close(self) -> None:
        for process in self.processes:
            process.stdin.close()  # type: ignore[union-attr]
        end = time.monotonic() + CLOSE
        for process in self.processes:
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            process.stdout.close()  # type: ignore[union-attr]
        self.complaints.close()


ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


@dataclass
class Contestant:
    """What a script offers as `of`, under a name of its own in the table."""

    name: str
    script: Script
    of: str
    facts: dict[str, Any]
    entry: Entry
    length: int = 1  # rounds in a turn
    done: int = 0  # rounds
    spent: float = 0.0  # seconds
    round: float = 0.0  # seconds, of one
    speeds: list[float | None] = field(default_factory=list)  # samples per second, turn by turn; None: sat out
    ledger: list[float] = field(default_factory=list)  # its share of the time, of ours
    distance: float | None = None
    lost: str = ""

    def rounds(self, seconds: float) -> int:
        """How many take about so long."""
        return max(1, round(seconds / self.round)) if self.round else 1

    def turn(self, rounds: int) -> float:
        """Samples per second of all its processes."""
        answers = self.script.ask({"of": self.of, "rounds": [self.done, self.done + rounds]})
        self.done += rounds
        self.spent += (seconds := max(a["seconds"] for a in answers))
        self.round = seconds / rounds
        if "ledger" in answers[0]:
            self.ledger.append(answers[0]["ledger"] / seconds)
        return sum(a["samples"] / a["seconds"] for a in answers)

    def model(self, file: Path) -> np.ndarray:
        """After the check, flat. Copies of a loop that wait for nobody all write the same."""
        self.script.ask({"of": self.of, "check": str(file)})
        with np.load(file) as weights:
            return np.concatenate([weights[name].ravel() for name in sorted(weights)])


class Contest:
    """Contestants on a workload; `only` these, beside those of `ALWAYS`; if none is named, all."""

    def __init__(self, work: Workload, pythons: Sequence[Path], only: Sequence[str], seconds: float, say: Say):
        self.work, self.pythons, self.only, self.seconds, self.say = work, pythons, only, seconds, say
        self.name, self.missing = work.name, dict[str, str]()
        self.scripts: list[Script] = []

    def held(self) -> dict[str, Any]:
        """What came of it: the facts of the workload, and each contestant's."""
        work = self.work
        facts = {
            "workload": work.name,
            "workers": work.workers,
            "device": work.device,
            "parameters": work.run_setup.model.numel,
            "cohort": len(work.run_setup.config.cohort.sample(None, 0, work.run_setup.config.seed, work.sizes)[1]),
            "samples": float(work.sizes.mean()),
            "flops": work.flops,
            "machine": machine(),
        }
        with tempfile.TemporaryDirectory() as folder:
            work.write(Path(folder))
            del self.work, work  # the samples are the contestants' now
            try:
                found = list(self._started(Path(folder), facts["workers"]))
                self._check(found, Path(folder))
                self._turns(found)
            finally:
                for script in self.scripts:
                    script.close()
        return facts | {"contestants": {c.name: _result(c, facts["samples"]) for c in found}, "missing": self.missing}

    def _started(self, folder: Path, workers: int) -> Iterator[Contestant]:
        wanted = [e for e in ENTRIES if not self.only or e.name in (*ALWAYS, *self.only)]
        homes = _homes([*self.pythons, Path(sys.executable)], [e.needs for e in wanted if e.needs])
        for entry in wanted:
            home = Path(sys.executable) if entry.needs is None else homes.get(entry.needs)
            if home is None:
                self.missing[entry.name] = f"{entry.needs} is in no side environment"
                continue
            for processes in dict.fromkeys(workers if p == "k" else int(p) for p in entry.processes):
                self.say(f"{self.name}: {entry.name} x{processes} starts")
                script = Script(home, entry.script, processes, folder)
                self.scripts.append(script)
                try:
                    said = script.answers()[0]
                except Lost as why:
                    said = {"unavailable": str(why)}
                if "unavailable" in said:
                    self.missing[f"{entry.name} x{processes}"] = said["unavailable"]
                for of, facts in said.get("ready", {}).items():
                    name = f"{of} x{processes}" if len(entry.processes) > 1 else of
                    yield Contestant(name, script, of, facts, entry)

    def _check(self, found: list[Contestant], folder: Path) -> None:
        """Each model after two small rounds beside the bare loop's."""
        with np.load(folder / "first.npz") as weights:
            first = np.concatenate([weights[name].ravel() for name in sorted(weights)])
        yardstick = None
        for contestant in sorted(found, key=lambda c: c.of != "bare"):
            if contestant.of == "peak":
                continue
            self.say(f"{self.name}: checking {contestant.name}")
            try:
                model = contestant.model(folder / "check.npz")
            except Lost as why:
                contestant.lost = str(why)
                continue
            yardstick = model if yardstick is None else yardstick
            contestant.distance = float(np.linalg.norm(model - yardstick) / np.linalg.norm(yardstick - first))
            allowed = OWN if contestant.entry.own else GIVEN
            if not contestant.distance <= allowed:
                contestant.lost = (
                    f"its model differs from the bare loop's by {contestant.distance:.2g} of what that changed"
                )

    def _turns(self, found: list[Contestant]) -> None:
        for contestant in found:
            self.say(f"{self.name}: {contestant.name} warms up")
            for part in (0.0, 0.0, 0.25):  # of a turn; the last tells how long a round is
                if not part or contestant.round < self.seconds:
                    self._take(contestant, contestant.rounds(part * self.seconds / TURNS))
            contestant.length = contestant.rounds(self.seconds / TURNS)
            contestant.speeds, contestant.ledger, contestant.spent = [], [], 0.0
        for turn in range(TURNS):
            self.say(f"{self.name}: turn {turn + 1} of {TURNS}")
            for contestant in found:
                self._take(contestant, contestant.length)

    def _take(self, contestant: Contestant, rounds: int) -> None:
        if contestant.lost:
            return
        try:
            tired = contestant.spent >= SHARE * self.seconds
            contestant.speeds.append(None if tired else contestant.turn(rounds))
        except Lost as why:
            contestant.lost = str(why)


def _homes(pythons: Sequence[Path], packages: list[str]) -> dict[str, Path]:
    """The first of the environments that has a package."""
    code = f"import importlib.util as u; print(*[p for p in {packages} if u.find_spec(p)])"
    homes: dict[str, Path] = {}
    for python in pythons:
        said = subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.split()
        homes = dict.fromkeys(said, python) | homes
    return homes


def _result(contestant: Contestant, mean: float) -> dict[str, Any]:
    speeds = [None if s is None else s / mean for s in contestant.speeds]
    done = [s for s in speeds if s is not None]
    said: dict[str, Any] = {
        "facts": contestant.facts,
        "distance": contestant.distance,
        "rounds_per_turn": contestant.length,
    }
    if contestant.ledger:
        said["ledger_share"] = statistics.median(contestant.ledger)
    if contestant.lost or not done:
        return said | {"lost": contestant.lost or "no turn"}
    return said | {"clients_per_second": statistics.median(done), "turns": speeds}
