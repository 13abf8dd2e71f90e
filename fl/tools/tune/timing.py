"""Rounds of one simulation, timed with one candidate after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from fl.config.config import Config
from fl.execution.section import Execution
from fl.execution.workers.executor import Executor, Job, Serial, nothing
from fl.execution.workers.gpus import GpuShares
from fl.execution.workers.ray import Ray
from fl.simulation.rehearsal import rehearse
from fl.simulation.setup import RunSetup
from fl.simulation.simulation import Simulation
from fl.storage.clients import ClientStates
from fl.tools.tune.candidates import Candidate


class Turn(NamedTuple):
    """Some rounds with one candidate: their number, clients in the cohorts, clients that failed, seconds."""

    rounds: int
    clients: int
    dropped: int
    seconds: float

    @property
    def speed(self) -> float:
        """Clients per second."""
        return self.clients / self.seconds

    @property
    def round_seconds(self) -> float:
        """Seconds of a round."""
        return self.seconds / self.rounds


class SwitchedExecutor:
    """An executor that is serial or a number of Ray workers, as `use` says; both stay ready.

    Args:
        counts: worker counts that `use` will ask for; 0 is the serial executor.
        execution: says where Ray runs, and on which device.
    """

    remote = False

    def __init__(self, counts: Sequence[int], execution: Execution):
        most = max(counts)
        gpus = GpuShares() if execution.device == "cuda" else None
        self._ray = Ray(most, execution.address, gpus) if most else None
        self._serial = Serial(execution.workers) if 0 in counts else None
        self._all: list[Executor] = [each for each in (self._ray, self._serial) if each is not None]
        self.use(counts[0])

    def use(self, workers: int) -> None:
        """Run what follows on this number of Ray workers; 0 is the serial executor."""
        current = self._ray if workers else self._serial
        assert current is not None, f"{workers} workers were not announced"
        if self._ray is not None and workers:
            self._ray.use_workers(workers)
        self._current: Executor = current
        self.workers = current.workers

    def prepare(self) -> None:
        """Start Ray in the background."""
        for executor in self._all:
            executor.prepare()

    def start(self, job: Job, states: ClientStates) -> None:
        """Give the job to both executors."""
        for executor in self._all:
            executor.start(job, states)

    def run(self, order: Any, meanwhile: Callable[[], None] = nothing) -> Any:
        """Run a dispatch on the executor in use."""
        return self._current.run(order, meanwhile)

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Run server work on the executor in use."""
        return self._current.call(fn, *args)

    def close(self) -> None:
        """Close both executors."""
        with ExitStack() as stack:
            for executor in self._all:
                stack.callback(executor.close)


class RoundTimer:
    """Context that runs rounds of one simulation with any candidate, each time from the same state.

    Args:
        config: the configuration, without evaluations.
        folder: an empty folder for the simulation's files.
        counts: worker counts of the candidates.
    """

    def __init__(self, config: Config, folder: Path, counts: Sequence[int]):
        self._executor = SwitchedExecutor(counts, config.execution)
        self._simulation = Simulation(config, folder, executor=self._executor)
        self.last: dict[Candidate, Turn] = {}
        self.turn_rounds = 1  # rounds of a turn

    def __enter__(self) -> RoundTimer:
        with ExitStack() as stack:
            simulation = stack.enter_context(self._simulation)
            simulation.start_workers()
            simulation.before_rounds()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def run_setup(self) -> RunSetup:
        """Data, model and default plan of the simulation."""
        return self._simulation.run_setup

    def rounds_of_pass(self, number: int) -> list[int]:
        """Rounds that every candidate runs in a pass: those of the first period but its last, over and over."""
        cycle = max(2, int(self.run_setup.ends[0]) - 1)
        return [r % cycle for r in range(number * self.turn_rounds, (number + 1) * self.turn_rounds)]

    def run(self, candidate: Candidate, rounds: Sequence[int]) -> Turn:
        """Run rounds with a candidate."""
        self._executor.use(candidate.workers)
        rows = rehearse(self._simulation, rounds, candidate.plan)
        clients, dropped = (sum(row[key] for row in rows) for key in ("cohort_size", "dropped"))
        turn = Turn(len(rounds), clients, dropped, sum(row["wall_seconds"] for row in rows))
        self.last[candidate] = turn
        return turn

    def fit_turn(self, candidate: Candidate, seconds: float) -> None:
        """Make turns of as many rounds as the candidate's last rounds fit into `seconds`; at least one."""
        self.turn_rounds = max(1, round(seconds / self.last[candidate].round_seconds))

    def turn_seconds(self, candidates: Sequence[Candidate]) -> float:
        """Expected seconds of one turn of each candidate."""
        return sum(self.last[candidate].round_seconds * self.turn_rounds for candidate in candidates)
