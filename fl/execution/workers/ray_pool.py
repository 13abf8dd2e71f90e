"""Ray and its workers: they come up beside the making of a run, and may outlive it.

    enlist  ->  Crew: a process starts Ray and hires, workers import torch          the run: read data, partition, build
    take    <-  waits for it, connects: workers without a job                       the job is handed over
    dismiss ->  down; within `keep_workers()`, back to waiting for the next run

Where Ray is there already (the caller's own, or a cluster at an `address`) nothing is started: `take` hires there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fl.errors import ConfigError
from fl.execution.workers.actor import create_actors
from fl.execution.workers.ray_head import NAME, NAMESPACE

HIRE_SECONDS = 120  # for new workers to come up
RETIRE_SECONDS = 1  # for a worker to put its job away; one that is still at work is let go
DOWN_SECONDS = 10  # for Ray to go down by itself


@dataclass(frozen=True)
class ActorHandle:
    """An actor, and where it is."""

    actor: Any
    node: str
    pid: int


class RayPool:
    """Ray with room for `workers`, which share the GPUs if they want any, and those of them that have no job."""

    def __init__(self, workers: int, address: str | None, gpus: bool = False):
        self.workers, self.address, self.gpus = workers, address, gpus
        self.head: subprocess.Popen | None = None
        self.ours = self.connected = False  # ours: to disconnect from
        self.idle: list[ActorHandle] = []
        if address is None and not _initialized():
            gpu = self._gpu(_gpus_here() if gpus else 0)  # -P: the present folder hides nothing
            command = [sys.executable, "-P", "-m", "fl.execution.workers.ray_head", str(workers), str(gpu)]
            # workers find modules where this process does; a session of its own: signals for the terminal's processes pass it by
            paths = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
            streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self.head = subprocess.Popen(command, env=os.environ | paths, text=True, start_new_session=True, **streams)

    def take(self, count: int) -> list[ActorHandle]:
        """So many living workers without a job, new ones if need be."""
        if not self.connected:
            self._connect()
        found = _living(self.idle)
        found, self.idle = found[:count], found[count:]
        return found + (self._hired(count - len(found)) if count > len(found) else [])

    def _hired(self, count: int) -> list[ActorHandle]:
        import ray

        there = ray.cluster_resources().get("GPU", 0) if self.gpus else 0
        if self.gpus and not there:
            raise ConfigError("execution.device", "'cuda', but the Ray cluster has no GPU; use 'cpu'")
        return _placed(create_actors(count, self._gpu(there)))

    def _gpu(self, there: float) -> float:
        """What each worker gets of so many."""
        return min(1.0, there / self.workers)

    def _connect(self) -> None:
        import ray

        address = self.address
        if self.head is not None:
            answer = json.loads(self.head.stdout.readline() or '{"error": "its process died"}')
            if "error" in answer:
                raise RuntimeError(
                    f"Ray did not come up: {answer['error']}. See its logs, or use execution.executor=serial"
                )
            address = answer["address"]
        if not ray.is_initialized():
            warnings.filterwarnings("ignore", "Tip: In future versions of Ray")
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
            self.ours = True
        self.connected = True
        cores = int(ray.cluster_resources().get("CPU", 0))
        if self.workers > cores:
            raise ConfigError("execution.workers", f"{self.workers} need as many cores; the Ray cluster has {cores}")
        if self.head is not None:
            self.idle = _placed([ray.get_actor(f"{NAME}-{i}", NAMESPACE) for i in range(self.workers)])

    def serves(self, workers: int, address: str | None, gpus: bool) -> bool:
        """Whether it will do for another run."""
        alive = _initialized() and (self.head is None or self.head.poll() is None)
        return alive and (self.address, self.gpus) == (address, gpus) and workers <= self.workers

    def leave(self) -> None:
        """Go down; what is not up yet does not come up."""
        if _initialized() and self.connected:
            import ray

            for handle in self.idle:
                ray.kill(handle.actor)
            if self.ours:
                ray.shutdown()
        if self.head is None:
            return
        self.head.stdin.close()
        if not self.connected:  # it goes down once it is up: killed in between, it would leave processes behind
            self.head.stdout.close()
            return
        try:
            self.head.wait(DOWN_SECONDS)
        except subprocess.TimeoutExpired:
            self.head.kill()
            self.head.wait()
        self.head.stdout.close()


def _gpus_here() -> int:
    import torch

    return torch.cuda.device_count()


def _initialized() -> bool:
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def _placed(actors: Sequence[Any]) -> list[ActorHandle]:
    """Actors that have come up."""
    import ray

    places = ray.get([actor.where.remote() for actor in actors], timeout=HIRE_SECONDS)
    return [ActorHandle(actor, *place) for actor, place in zip(actors, places)]


def _living(handles: Sequence[ActorHandle], method: str = "where", seconds: float | None = None) -> list[ActorHandle]:
    """Those who answer, in time; the others are let go."""
    import ray

    asked = {getattr(handle.actor, method).remote(): handle for handle in handles}
    if asked:
        ray.wait(list(asked), num_returns=len(asked), timeout=seconds)
    living = []
    for call, handle in asked.items():
        try:
            ray.get(call, timeout=0)
            living.append(handle)
        except ray.exceptions.RayError:
            ray.kill(handle.actor)
    return living


# -- from run to run --------------------------------------------------------------------------------------------------
_keepers = 0  # contexts that ask to keep
_resting: RayPool | None = None  # between two runs


def acquire_pool(workers: int, address: str | None, gpus: bool = False) -> RayPool:
    """A crew for a run, which begins to come up; the one that rests, if it serves."""
    global _resting
    crew, _resting = _resting, None
    if crew is not None and crew.serves(workers, address, gpus):
        return crew
    if crew is not None:
        crew.leave()
    return RayPool(workers, address, gpus)


def release_pool(crew: RayPool, handles: Sequence[ActorHandle]) -> None:
    """The end of a run; `handles`: those who live."""
    global _resting
    keep = _keepers and _resting is None and crew.connected
    if handles and (keep or crew.head is None):  # else they die with their node
        crew.idle += _living(handles, "retire", RETIRE_SECONDS)
    if keep:
        _resting = crew
    else:
        crew.leave()


@contextlib.contextmanager
def keep_workers() -> Iterator[None]:
    """Runs within share one crew, if they can: it goes down at the end."""
    global _keepers, _resting
    _keepers += 1
    try:
        yield
    finally:
        _keepers -= 1
        if not _keepers and _resting is not None:
            crew, _resting = _resting, None
            crew.leave()
