"""Ray and its actors: they come up beside the making of a run, and may outlive it.

    enlist  ->  Crew: a thread connects and hires, processes import torch          the run: read data, partition, build
    take    <-  waits for it: workers without a job                                the job is handed over
    dismiss ->  down; within `kept()`, back to waiting for the next run

A run that fails while its crew is still coming up does not wait: the crew goes down by itself, or with the process.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import logging
import os
import pickle
import random
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fl import registry
from fl.config import ConfigError
from fl.execution.executor import Order
from fl.execution.process import trim
from fl.execution.shared import Handle, Queue, Region, folder, remove

HIRE_SECONDS = 120  # for a new worker to come up
RETIRE_SECONDS = 1  # for a worker to put its job away; one that is still at work is let go
OBJECT_STORE = 256 << 20  # bytes; on one node Ray's object store carries next to nothing


class Actor:
    """A worker process. Values come as handles; `memory` replaces the mapped file on nodes that do not see it."""

    def where(self) -> tuple[str, int]:
        """The node and the process this worker is; what every job needs has been imported."""
        import ray

        import fl.execution.worker  # noqa: F401

        return ray.get_runtime_context().get_node_id(), os.getpid()

    def setup(self, sources: dict, handle: Handle, memory: np.ndarray | None, writer: int, prefix: str, local: str) -> None:
        """Take the job."""
        import ray

        registry.adopt(sources)
        self.node = ray.get_runtime_context().get_node_id()
        self.near, self.prefix = self.node == local, prefix
        self.region = Region(prefix)
        self.worker = self._open(handle, memory).worker(writer)

    def run(self, order: bytes, memory: np.ndarray | None) -> Handle:
        """Work through a share of an order. One argument of bytes: Ray spends a tenth of a millisecond on each."""
        handle, name, runs, steal, me, segment = pickle.loads(order)
        whole: Order = self._open(handle, memory)
        path = folder() / f"{self.prefix}-{self.node[:8]}-{name}"
        for old in folder().glob(f"{self.prefix}-{self.node[:8]}-queue-*"):  # of earlier exchanges: nobody reads them
            if old != path:
                old.unlink(missing_ok=True)
        queue = Queue(str(path), runs)
        part = self.worker.run(whole, queue.tasks(me, 1, steal), segment)
        queue.close()
        return self._answer(part)

    def call(self, handle, memory) -> Handle:
        fn, args = self._open(handle, memory)
        return self._answer(fn(*args))

    def retire(self) -> None:
        """Put the job away; on another node than the driver's, remove its shared files."""
        if not self.near:
            remove(self.prefix)
        self.worker.close()
        del self.worker, self.region
        gc.collect()
        trim()

    def _open(self, handle: Handle, memory: np.ndarray | None) -> Any:
        return (handle if self.near else replace(handle, memory=memory)).open()

    def _answer(self, value: Any) -> Handle:
        handle = self.region.write(value)
        return handle if self.near else replace(handle, memory=self.region.copy(handle))


@dataclass(frozen=True)
class Recruit:
    """An actor, and where it is."""

    actor: Any
    node: str
    pid: int


def connect(workers: int, address: str | None) -> bool:
    """Be in a Ray cluster with that many cores; whether it was started for us."""
    import ray

    ours = not ray.is_initialized()
    if ours:
        _draw_apart()
        options = {} if address else {"num_cpus": workers, "object_store_memory": OBJECT_STORE}
        warnings.filterwarnings("ignore", "Tip: In future versions of Ray")
        # "local": never some other cluster that happens to run on this machine
        ray.init(address or "local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, **options)
    cores = int(ray.cluster_resources().get("CPU", 0))
    if workers > cores:
        raise ConfigError("execution.workers", f"{workers} need as many cores; the Ray cluster has {cores}")
    return ours


def _draw_apart() -> None:
    """Ray names things by Python's global generator: its modules are given one of their own, so that a data set which draws
    from the global one, while Ray comes up, is what it always is."""
    spec = importlib.util.find_spec("random")
    own = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(own)
    for name, module in list(sys.modules.items()):
        if name.startswith("ray.") and vars(module).get("random") is random:
            module.random = own


class Crew:
    """Ray with room for `workers`, and those of them that have no job. The thread lives as long as Ray does: the system takes
    what a thread has started down with it."""

    def __init__(self, workers: int, address: str | None):
        self.workers, self.address, self.ours = workers, address, False
        self.idle: list[Recruit] = []
        self.failure: BaseException | None = None
        self.up, self.unwanted, self.gone = threading.Event(), threading.Event(), False  # up: or failed to come up
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self._live, name="fl-crew", daemon=True)
        self.thread.start()

    def _live(self) -> None:
        try:
            self.ours = connect(self.workers, self.address)
            self.idle = hired(self.workers)
        except BaseException as error:
            self.failure = error
        self.up.set()
        while not self.gone:
            self.unwanted.wait()
            with self.lock:
                self.gone = self.unwanted.is_set()
        self._go_down()

    def _go_down(self) -> None:
        import ray

        if self.ours:
            ray.shutdown()
        elif ray.is_initialized():
            for recruit in self.idle:
                ray.kill(recruit.actor)
        self.idle = []

    def take(self, count: int) -> list[Recruit]:
        """So many living workers without a job, new ones if need be."""
        self.up.wait()
        if self.failure is not None:
            raise self.failure
        found = _living(self.idle)
        found, self.idle = found[:count], found[count:]
        return found + (hired(count - len(found)) if count > len(found) else [])

    def wanted_for(self, workers: int, address: str | None) -> bool:
        """Whether it will do for another run; then it stays."""
        import ray

        with self.lock:
            will = not self.gone and self.address == address and workers <= self.workers
            if will and self.up.is_set():
                will = self.failure is None and ray.is_initialized()
            if will:
                self.unwanted.clear()
            return will

    def leave(self) -> None:
        """Go down; if it is not up yet, as soon as it is."""
        self.unwanted.set()
        if self.up.is_set():
            self.thread.join()
        else:  # should the process end first, Ray would tell that it was cut short
            logging.getLogger("ray").setLevel(logging.CRITICAL)


def hired(count: int) -> list[Recruit]:
    """New workers."""
    import ray

    kind = ray.remote(num_cpus=1, max_restarts=0, scheduling_strategy="SPREAD")(Actor)
    actors = [kind.remote() for _ in range(count)]
    places = ray.get([actor.where.remote() for actor in actors], timeout=HIRE_SECONDS)
    return [Recruit(actor, *place) for actor, place in zip(actors, places)]


def _living(recruits: Sequence[Recruit], method: str = "where", seconds: float | None = None) -> list[Recruit]:
    """Those who answer, in time; the others are let go."""
    import ray

    asked = {getattr(recruit.actor, method).remote(): recruit for recruit in recruits}
    if asked:
        ray.wait(list(asked), num_returns=len(asked), timeout=seconds)
    living = []
    for call, recruit in asked.items():
        try:
            ray.get(call, timeout=0)
            living.append(recruit)
        except ray.exceptions.RayError:
            ray.kill(recruit.actor)
    return living


# -- from run to run --------------------------------------------------------------------------------------------------
_keepers = 0  # contexts that ask to keep
_resting: Crew | None = None  # without a run: kept for the next one, or coming up for one that failed


def enlist(workers: int, address: str | None) -> Crew:
    """A crew for a run, which begins to come up; the one that rests, if it serves."""
    global _resting
    crew, _resting = _resting, None
    if crew is None:
        return Crew(workers, address)
    if crew.wanted_for(workers, address):
        return crew
    crew.leave()
    crew.thread.join()
    return Crew(workers, address)


def dismiss(crew: Crew, recruits: Sequence[Recruit]) -> None:
    """The end of a run; `recruits`: those who live."""
    global _resting
    keep = _keepers and _resting is None and crew.failure is None
    if recruits and (keep or crew.address or not crew.ours):  # else they die with their node
        crew.idle += _living(recruits, "retire", RETIRE_SECONDS)
    if keep or not crew.up.is_set():
        _resting = crew
    if not keep:
        crew.leave()


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Runs within share one crew, if they can: it goes down at the end."""
    global _keepers
    _keepers += 1
    try:
        yield
    finally:
        _keepers -= 1
        if not _keepers and _resting is not None:
            _resting.leave()
