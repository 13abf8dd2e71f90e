"""What the processes of the suite do: run or resume a configuration, and die where they are told to."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fl
from experiments.faults.instants import Instants
from fl.cli.app import main
from fl.config.config import resolve
from fl.config.reading import read
from fl.simulation.simulation import Simulation
from fl.storage.run import committed


def run_or_resume(raw: Any, out: Path) -> None:
    """Do what a user does after a crash: resume a run that has a commit, begin it again otherwise."""
    if committed(out):
        fl.resume(out)
    else:
        fl.run(raw, out=out, progress=False)


def until_call(raw: Any, out: Path, seed: int, fatal: int | None, count: Path | None = None) -> None:
    """Run or resume; die at the n-th call that changes files, or write the number of calls to the file `count`."""
    instants = Instants(seed, fatal)
    instants.install()
    run_or_resume(raw, out)
    if count is not None:
        count.write_text(str(instants.calls))


def failing_command(words: list[str], seed: int, fatal: int | None, error: int | None) -> None:
    """Perform a command of fl whose n-th call that changes files fails; end with its exit code."""
    if fatal is not None:
        Instants(seed, fatal, error).install()
    sys.argv = ["fl", *words]
    main()


def sweep_until_call(file: Path, out: Path, seed: int, fatal: int | None, count: Path | None = None) -> None:
    """Run or continue a sweep, see `until_call`."""
    instants = Instants(seed, fatal)
    instants.install()
    sys.argv = ["fl", "sweep", str(file), "--out", str(out)]
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
    if count is not None:
        count.write_text(str(instants.calls))


def run_with_path(raw: Any, out: Path, folder: str) -> None:
    """Run or resume, with a folder on the path of all processes that this one starts."""
    sys.path.insert(0, folder)
    run_or_resume(raw, out)


class Killer(fl.Callback):
    """Calls a function at a random instant after every second round, in a thread.

    Args:
        seed: decides the instants.
        kills: number of calls.
        kill: the function, with a generator for its own choices.

    Attributes:
        done: number of calls so far.
    """

    def __init__(self, seed: int, kills: int, kill: Callable[[random.Random], None]):
        self.draw, self.kills, self.kill, self.done = random.Random(seed), kills, kill, 0
        self.last: threading.Thread | None = None
        self.error: BaseException | None = None

    def start(self, run: Any) -> None:
        self.rounds = run.rounds

    def round(self, row: Any) -> None:
        if row["round"] % 2:
            if self.last is not None:
                self.last.join()  # before the last rounds, so that work is left
                self.last = None
        elif self.done < self.kills and row["round"] < self.rounds - 2:
            seconds = self.draw.random() * float(row["wall_seconds"])
            self.last = threading.Thread(target=self._kill_after, args=(seconds,))
            self.last.start()

    def _kill_after(self, seconds: float) -> None:
        time.sleep(seconds)
        try:
            self.kill(self.draw)
            self.done += 1
        except BaseException as error:
            self.error = error


def killing_workers(raw: Any, out: Path, seed: int, kills: int, done: Path) -> None:
    """Run with Ray; kill workers at random instants. `done`: file for the number of kills."""
    out.mkdir(parents=True, exist_ok=True)
    with Simulation(resolve(read(raw, {})), out) as simulation:

        def kill(draw: random.Random) -> None:
            members = [member for member in simulation.executor.members if member.actor is not None]
            os.kill(draw.choice(members).pid, signal.SIGKILL)

        _run_with(Killer(seed, kills, kill), simulation, done)


def _run_with(killer: Killer, simulation: Simulation, done: Path) -> None:
    simulation.run([killer])
    if killer.error is not None:
        raise killer.error
    done.write_text(str(killer.done))


def prolong(out: Path, rounds: int, seed: int, fatal: int | None, count: Path | None = None) -> None:
    """Give a finished run more rounds, see `until_call`."""
    instants = Instants(seed, fatal)
    instants.install()
    fl.resume(out, rounds=rounds)
    if count is not None:
        count.write_text(str(instants.calls))
