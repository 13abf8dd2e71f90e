"""Our own rounds: sampling, broadcast, training, codec, reduction, ledger; by each plan that is possible, in one process and on Ray
workers. On the softmax workload also with evaluation and a commit in every round, and what of that is the ledger's.

    stacked x1   a thread with a run in it, which stops at the end of a round and waits to be asked for more
    stacked xk   likewise; the workers of all runs are in one Ray
    compiled, k threads   one process, whose compiled parts use so many
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
from fl.method.sampler import CohortSampler
from fl.simulation.build import set_up_run
from fl.simulation.run import run
from fl.tensors import random

WHOLE = {"softmax", "softmax_10k"}  # workloads whose rounds are also run with all that a real one has


class Over(Exception):
    """Nobody asks for more."""


class FixedCohorts(CohortSampler):
    """The cohorts of a list, one per round."""

    def __init__(self, cohorts: list[np.ndarray]):
        self.cohorts = cohorts

    def sample(self, state, round_, seed, sizes):
        return state, self.cohorts[round_]


class Timed:
    """A ledger, and the seconds that went into it."""

    def __init__(self, ledger: Any):
        self.ledger, self.seconds = ledger, 0.0

    def __getattr__(self, name: str) -> Any:
        of = getattr(self.ledger, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                return of(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - begun

        return timed


class Ours(Contestant):
    """A run in a thread of its own, begun when it is first asked."""

    def __init__(self, work: Workload, config: Config, auto: bool):
        super().__init__(work)
        self.config, self.auto = config, auto
        self.asked: queue.Queue[int] = queue.Queue()
        self.told: queue.Queue[float | Exception] = queue.Queue()
        self.thread: threading.Thread | None = None

    @property
    def facts(self):
        of = self.config.execution
        return {"plan": of.plan, "chunk": of.chunk, "auto": self.auto, "executor": of.executor}

    def check(self):
        """In this process, on the given cohorts and in the given order."""
        execution = replace(self.config.execution, executor="serial")
        check = replace(self.config, rounds=2, cohort=FixedCohorts(self.work.check), execution=execution)
        with tempfile.TemporaryDirectory() as out, in_order():
            model = run(check, out=Path(out) / "run").model
        return {name: tensor.numpy() for name, tensor in model.items()}

    def play(self, a: int, b: int):
        if self.thread is None:
            self.thread = threading.Thread(target=self.run)
            self.thread.start()
        self.asked.put(b - a)
        seconds = self.told.get()
        if isinstance(seconds, Exception):
            raise seconds
        samples = int(sum(self.work.sizes[cohort].sum() for cohort in self.work.rounds(a, b)))
        return {"seconds": seconds, "samples": samples} | self.spent

    def close(self) -> None:
        if self.thread is not None:
            self.asked.put(0)
            self.thread.join()

    def run(self) -> None:
        try:
            with tempfile.TemporaryDirectory() as out, contextlib.suppress(Over):
                run(self.config, out=Path(out) / "run", watch=self.watch)
        except Exception as failed:
            self.told.put(failed)

    def watch(self, event: str, value: Any) -> None:
        if event == "start":
            self.ledger = value.folder.ledger = Timed(value.folder.ledger)
        elif event == "ready":
            self.wait()
        elif event == "round":
            self.left -= 1
            if not self.left:
                seconds = time.perf_counter() - self.begun
                self.spent = {"ledger": self.ledger.seconds}
                self.told.put(seconds)
                self.wait()

    def wait(self) -> None:
        self.left = self.asked.get()
        if not self.left:
            raise Over
        self.ledger.seconds, self.begun = 0.0, time.perf_counter()


@contextlib.contextmanager
def in_order() -> Iterator[None]:
    """Within, nothing is shuffled."""
    shuffles = random.permutation, random.permutations, compiled.SHUFFLED
    compiled.SHUFFLED = False
    random.permutation = lambda n, *_: np.arange(n)
    random.permutations = lambda sizes, *_: np.tile(np.arange(sizes.max(initial=0)), (len(sizes), 1))
    try:
        yield
    finally:
        random.permutation, random.permutations, compiled.SHUFFLED = shuffles


def variants(work: Workload) -> dict[str, Ours]:
    config = resolve(work.config)
    config = replace(config, data=Data(part=config.data.load(), augment=config.data.augment))  # loaded once for all
    auto, asked = set_up_run(config).plan.kind, config.execution.plan
    found = {}
    for kind in get_args(Kind) if asked == "auto" else [asked]:  # the one that the workload names, or all
        execution = replace(config.execution, plan=kind, chunk=None, memory_format=None)
        with contextlib.suppress(ConfigError):
            resolved = set_up_run(replace(config, execution=execution)).config
            ways = [("serial", 1, " x1"), ("ray", work.workers, f" x{work.workers}")]
            if kind == "compiled" and work.workers > 1:
                ways.append(("serial", work.workers, f", {work.workers} threads"))
            for executor, workers, name in ways:
                this = replace(resolved.execution, executor=executor, workers=workers)
                found[f"ours {kind}{name}"] = Ours(work, replace(resolved, execution=this), kind == auto)
    if work.name in WHOLE:
        best = found[f"ours {auto} x{work.workers}"].config
        whole = {
            "evaluation": Evaluation(every=1, server=False, clients=max(map(len, work.cohorts))),
            "checkpoint": replace(best.checkpoint, every=1, best=True),
        }
        found["ours, evaluated and committed"] = Ours(work, replace(best, **whole), True)
    return found


def start(work: Workload) -> dict[str, Contestant]:
    found = variants(work)
    on_ray = sum(of.config.execution.executor == "ray" for of in found.values())
    if on_ray:  # one for all of them
        ray.init("local", num_cpus=on_ray * work.workers, include_dashboard=False, log_to_driver=False)
    RUNS.extend(found.values())
    return found


RUNS: list[Ours] = []

if __name__ == "__main__":
    try:
        serve(start)
    finally:
        for each in RUNS:
            each.close()
