"""Our own rounds: sampling, broadcast, training, codec, reduction, ledger.

Each possible plan is a contestant, in one process and on Ray workers. On some workloads, another contestant also
evaluates and commits in each round, as a default run does; it measures the ledger's share of the time.

    stacked x1             a thread performs a run; at the end of the requested rounds it waits for the next request
    stacked xk             the same on k Ray workers; the workers of all contestants belong to one Ray
    compiled, k threads    one process; its compiled code uses k threads
"""

from __future__ import annotations

import contextlib
import queue
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import ray
from protocol import Contestant, Workload, serve

from fl.config.config import Config, resolve
from fl.config.sections import Evaluation
from fl.data.section import Data
from fl.errors import ConfigError
from fl.execution.training import compiled
from fl.execution.training.plan import Kind
from fl.simulation.build import set_up_run
from fl.simulation.run import run
from fl.tensors import random
from fl.tools.bench.cohorts import FixedCohorts
from fl.tracking.callback import Callback

EVALUATED = {
    "softmax",
    "softmax_10k",
    "femnist_mlp",
}  # workloads that are also measured with an evaluation and a commit per round


class StopRun(Exception):
    """Ends the run of a thread after its last requested round."""


class TimedLedger:
    """A ledger that adds up the seconds of its methods."""

    def __init__(self, ledger: Any):
        self.ledger, self.seconds = ledger, 0.0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.ledger, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return timed


class Ours(Contestant):
    """A run in a thread, which starts at the first request for rounds."""

    def __init__(self, work: Workload, config: Config, auto: bool, bare: str | None = None):
        super().__init__(work)
        self.config, self.auto, self.bare = config, auto, bare
        self.requests: queue.Queue[int] = queue.Queue()  # numbers of rounds; 0 ends the run
        self.answers: queue.Queue[float | Exception] = queue.Queue()  # seconds, or the error of the run
        self.thread: threading.Thread | None = None

    @property
    def facts(self):
        execution = self.config.execution
        return {"plan": execution.plan, "chunk": execution.chunk, "auto": self.auto, "executor": execution.executor} | (
            {"bare": self.bare} if self.bare else {}
        )

    def check(self):
        """Return the model after the check's cohorts, trained in this process without shuffling."""
        execution = replace(self.config.execution, executor="serial")
        check = replace(self.config, rounds=2, cohort=FixedCohorts(self.work.check), execution=execution)
        with tempfile.TemporaryDirectory() as out, without_shuffling():
            model = run(check, out=Path(out) / "run").model
        return {name: tensor.numpy() for name, tensor in model.items()}

    def play(self, a: int, b: int):
        if self.thread is None:
            self.thread = threading.Thread(target=self.run)
            self.thread.start()
        self.requests.put(b - a)
        seconds = self.answers.get()
        if isinstance(seconds, Exception):
            raise seconds
        samples = int(sum(self.work.sizes[cohort].sum() for cohort in self.work.rounds(a, b)))
        return {"seconds": seconds, "samples": samples, "ledger": self.ledger_seconds}

    def close(self) -> None:
        """End the run and its thread."""
        if self.thread is not None:
            self.requests.put(0)
            self.thread.join()

    def run(self) -> None:
        """Perform the run; the thread's function."""
        try:
            with tempfile.TemporaryDirectory() as out, contextlib.suppress(StopRun):
                run(self.config, out=Path(out) / "run", callbacks=[_Clock(self)], progress=False)
        except Exception as error:
            self.answers.put(error)

    def count_round(self) -> None:
        """Count a round; after the last requested one, answer and wait for the next request."""
        self.rounds_left -= 1
        if not self.rounds_left:
            seconds = time.perf_counter() - self.started
            self.ledger_seconds = self.ledger.seconds
            self.answers.put(seconds)
            self.wait()

    def wait(self) -> None:
        """Wait for a request and start the clock."""
        self.rounds_left = self.requests.get()
        if not self.rounds_left:
            raise StopRun
        self.ledger.seconds, self.started = 0.0, time.perf_counter()


class _Clock(Callback):
    """Counts the rounds of a contestant's run; after the last requested one, answers and waits for the next request."""

    def __init__(self, contestant: Ours):
        self.contestant = contestant

    def start(self, run: Any) -> None:
        self.contestant.ledger = run.folder.ledger = TimedLedger(run.folder.ledger)

    def ready(self, run: Any) -> None:
        self.contestant.wait()

    def computed(self, row: Any) -> None:
        self.contestant.count_round()


@contextlib.contextmanager
def without_shuffling() -> Iterator[None]:
    """Make all shuffles inside the block the identity."""
    shuffles = random.permutation, random.permutations, compiled.SHUFFLED
    compiled.SHUFFLED = False
    random.permutation = lambda n, *_: np.arange(n)
    random.permutations = lambda sizes, *_: np.tile(np.arange(sizes.max(initial=0)), (len(sizes), 1))
    try:
        yield
    finally:
        random.permutation, random.permutations, compiled.SHUFFLED = shuffles


def variants(work: Workload) -> dict[str, Ours]:
    """Return a contestant per possible plan and executor."""
    config = resolve(work.config)
    config = replace(config, data=Data(part=config.data.load(), augment=config.data.augment))  # load the data once
    auto, requested = set_up_run(config).plan.kind, config.execution.plan
    contestants = {}
    for kind in get_args(Kind) if requested == "auto" else [requested]:
        execution = replace(config.execution, plan=kind, chunk=None, memory_format=None)
        with contextlib.suppress(ConfigError):
            resolved = set_up_run(replace(config, execution=execution)).config
            executors = [("serial", 1, " x1")]
            if work.workers > 1:
                executors.append(("ray", work.workers, f" x{work.workers}"))
            if kind == "compiled" and work.workers > 1:
                executors.append(("serial", work.workers, f", {work.workers} threads"))
            for executor, workers, suffix in executors:
                execution = replace(resolved.execution, executor=executor, workers=workers)
                contestants[f"ours {kind}{suffix}"] = Ours(work, replace(resolved, execution=execution), kind == auto)
    if work.name in EVALUATED:
        bare = f"ours {auto}, {work.workers} threads"  # where `executor: auto` trains
        bare = bare if bare in contestants else f"ours {auto} x{work.workers}"
        best = contestants[bare].config
        sections = {
            "evaluation": Evaluation(every=1, server=False, clients=max(map(len, work.cohorts))),
            "checkpoint": replace(best.checkpoint, every=1, best=True),
        }
        contestants["ours, evaluated and committed"] = Ours(work, replace(best, **sections), True, bare)
    return contestants


def start(work: Workload) -> dict[str, Contestant]:
    contestants = variants(work)
    on_ray = sum(ours.config.execution.executor == "ray" for ours in contestants.values())
    if on_ray:  # one Ray for all contestants
        ray.init("local", num_cpus=on_ray * work.workers, include_dashboard=False, log_to_driver=False)
    RUNS.extend(contestants.values())
    return contestants


RUNS: list[Ours] = []

if __name__ == "__main__":
    try:
        serve(start)
    finally:
        for ours in RUNS:
            ours.close()
