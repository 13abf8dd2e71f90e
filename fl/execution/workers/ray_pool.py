"""Ray and its actors, as a pool: they start up while a run is set up, and may outlive it.

    acquire_pool -> RayPool: a process starts Ray and creates actors, which import torch     meanwhile the run is set up
    acquire      <- waits for it, connects: actors without a job                              then the job is sent
    release_pool -> shut down; within `keep_workers()`, kept for the next run

If Ray runs already (the caller's own, or a cluster at an `address`), none is started: `acquire` creates actors there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fl.errors import ConfigError
from fl.execution.workers.actor import create_actors
from fl.execution.workers.gpus import GpuShares
from fl.execution.workers.ray_access import check_doors, forget_token, on_loopback, token_environment, with_token
from fl.execution.workers.ray_head import NAME, NAMESPACE

ANSWER_SECONDS = 300  # for Ray to start; seconds on a machine without other work
START_SECONDS = 120  # for new actors to start up
LOOK_SECONDS = 2  # between looks whether they still can start
RETIRE_SECONDS = 1  # for an actor to drop its job; one that is still working is killed
SHUTDOWN_SECONDS = 10  # for Ray to shut down by itself


@dataclass(frozen=True)
class ActorHandle:
    """An actor, and where it runs."""

    actor: Any
    node: str
    pid: int


class RayPool:
    """Ray with room for `workers` actors, and the idle ones among them; with `gpus` they have shares of GPUs."""

    def __init__(self, workers: int, address: str | None, gpus: GpuShares | None = None):
        self.workers, self.address, self.gpus = workers, address, gpus
        self.head: subprocess.Popen[str] | None = None
        self.token = secrets.token_hex(32)  # of the Ray that the head starts
        self.connected = False
        self.disconnects = False  # whether the connection is ours to close
        self.idle: list[ActorHandle] = []
        if address is None and not _initialized():
            share = gpus.share(gpus.on_this_machine(), workers) if gpus else 0.0
            total = gpus.total if gpus and gpus.total is not None else ""
            # -P: no file of the present folder hides a module
            command = [sys.executable, "-P", "-m", "fl.execution.workers.ray_head"]
            command += [str(workers), str(share), str(total)]
            # workers find modules where this process does; its own session: the terminal's signals do not reach it
            paths = {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
            self.head = subprocess.Popen(
                command,
                env=os.environ | paths | token_environment(self.token),
                text=True,
                start_new_session=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )

    def acquire(self, count: int, living: int = 0) -> list[ActorHandle]:
        """Return `count` living actors without a job; missing ones are created. `living` ones have a job."""
        self.connect()
        found = _living(self.idle)
        found, self.idle = found[:count], found[count:]
        return found + (self._create(count - len(found), living + len(found)) if count > len(found) else [])

    def room(self, living: int) -> int:
        """Return how many workers the nodes that are up have room for, beside `living` ones of one core each."""
        import ray

        return max(0, int(ray.cluster_resources().get("CPU", 0)) - living)

    def _create(self, count: int, living: int) -> list[ActorHandle]:
        import ray

        if self.gpus is None:
            return _located(create_actors(count, 0.0), lambda: self.room(living) >= count)
        gpus = ray.cluster_resources().get("GPU", 0)
        room = self.gpus.room(gpus)
        if room is None and not gpus:
            raise ConfigError("execution.device", "'cuda', but the Ray cluster has no GPU; use 'cpu'")
        if room is not None and room < self.workers:
            each = f"{self.workers} workers with {self.gpus.per_worker:g} GPUs each"
            raise ConfigError("workers", f"{each}, but the {gpus:g} GPUs of the Ray cluster have room for {room}")
        return _located(create_actors(count, self.gpus.share(gpus, self.workers)))

    def connect(self) -> None:
        """Connect to Ray, once; the idle actors of a head are those that it has created."""
        if self.connected:
            return
        import ray

        address = self.address if self.head is None else self._answer()["address"]
        if not ray.is_initialized():
            warnings.filterwarnings("ignore", "Tip: In future versions of Ray")
            with contextlib.ExitStack() as ours:
                ours.enter_context(as_a_guest())
                if self.head is not None:
                    ours.enter_context(on_loopback())
                    ours.enter_context(with_token(self.token))
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
            self.disconnects = True
        self.connected = True
        cores = int(ray.cluster_resources().get("CPU", 0))
        if self.workers > cores:
            raise ConfigError("execution.workers", f"{self.workers} need as many cores; the Ray cluster has {cores}")
        if self.head is not None:
            actors = [ray.get_actor(f"{NAME}-{i}", NAMESPACE) for i in range(self.workers)]
            try:
                self.idle = _located(actors)
            except ray.exceptions.RayActorError:  # one has died; `acquire` creates others
                for actor in actors:
                    ray.kill(actor)
            check_doors(**self._answer())

    def _answer(self) -> dict[str, Any]:
        """Return the next line of the process that starts Ray."""
        assert self.head is not None and self.head.stdout is not None
        limit = threading.Timer(ANSWER_SECONDS, self.head.kill)
        limit.start()
        try:
            line = self.head.stdout.readline()
        finally:
            limit.cancel()
        nothing = json.dumps({"error": f"its process died, or did not answer within {ANSWER_SECONDS} s"})
        answer: dict[str, Any] = json.loads(line or nothing)
        if "error" in answer:
            logs = f" Its logs are in {answer['logs']} until the next start." if answer.get("logs") else ""
            raise RuntimeError(f"Ray did not start: {answer['error']}.{logs} execution.executor=serial needs no Ray")
        return answer

    def suits(self, workers: int, address: str | None, gpus: GpuShares | None) -> bool:
        """Whether another run can use this pool."""
        alive = _initialized() and (self.head is None or self.head.poll() is None)
        return alive and (self.address, self.gpus) == (address, gpus) and workers <= self.workers

    def shut_down(self) -> None:
        """Kill idle actors, disconnect, and stop the Ray that this pool has started."""
        if _initialized() and self.connected:
            import ray

            for handle in self.idle:
                ray.kill(handle.actor)
            if self.disconnects:
                ray.shutdown()
                if self.head is not None:
                    forget_token()
        if self.head is None:
            return
        assert self.head.stdin is not None and self.head.stdout is not None
        self.head.stdin.close()
        if not self.connected:  # it stops once it has started: killed before, it would leave processes behind
            self.head.stdout.close()
            return
        try:
            self.head.wait(SHUTDOWN_SECONDS)
        except subprocess.TimeoutExpired:
            self.head.kill()
            self.head.wait()
        self.head.stdout.close()


@contextlib.contextmanager
def as_a_guest() -> Iterator[None]:
    """Keep this program's SIGTERM handler and standard output while `ray.init` runs.

    Ray's handler would end the program at once, and a thread of Ray prints when a worker dies, which we log.
    """
    from ray._private import utils, worker

    handler, names = signal.getsignal(signal.SIGTERM), {utils: "set_sigterm_handler", worker: "listen_error_messages"}
    theirs = {module: getattr(module, name, None) for module, name in names.items()}
    for module, name in names.items():
        setattr(module, name, lambda *_: None)
    try:
        yield
    finally:
        for module, name in names.items():
            if theirs[module] is not None:
                setattr(module, name, theirs[module])
        if signal.getsignal(signal.SIGTERM) is not handler:  # another version of Ray
            signal.signal(signal.SIGTERM, handler)


def _initialized() -> bool:
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def _located(actors: Sequence[Any], possible: Callable[[], bool] = lambda: True) -> list[ActorHandle]:
    """Wait until actors have started, and ask where they are.

    Args:
        actors: the actors. Those that have not started are killed after an error.
        possible: whether they still can start; asked now and then.

    Raises:
        GetTimeoutError: they have not started in time, or cannot start, because a node is lost.
    """
    import ray

    calls, end = [actor.where.remote() for actor in actors], time.monotonic() + START_SECONDS
    while True:
        try:
            places = ray.get(calls, timeout=LOOK_SECONDS)
            return [ActorHandle(actor, *place) for actor, place in zip(actors, places)]
        except ray.exceptions.GetTimeoutError:
            if time.monotonic() < end and possible():
                continue
            for actor in actors:
                ray.kill(actor)
            raise


def _living(handles: Sequence[ActorHandle], method: str = "where", seconds: float | None = None) -> list[ActorHandle]:
    """Return the actors that answer in time, and kill the others."""
    import ray

    calls = {getattr(handle.actor, method).remote(): handle for handle in handles}
    if calls:
        ray.wait(list(calls), num_returns=len(calls), timeout=seconds)
    living = []
    for call, handle in calls.items():
        try:
            ray.get(call, timeout=0)
            living.append(handle)
        except ray.exceptions.RayError:
            ray.kill(handle.actor)
    return living


# -- from run to run --------------------------------------------------------------------------------------------------
_keepers = 0  # open `keep_workers` contexts
_kept_pool: RayPool | None = None  # between two runs


def acquire_pool(workers: int, address: str | None, gpus: GpuShares | None = None) -> RayPool:
    """Return a pool for a run: the kept one if it suits, else a new one that starts up."""
    global _kept_pool
    pool, _kept_pool = _kept_pool, None
    if pool is not None and pool.suits(workers, address, gpus):
        return pool
    if pool is not None:
        pool.shut_down()
    return RayPool(workers, address, gpus)


def release_pool(pool: RayPool, handles: Sequence[ActorHandle]) -> None:
    """Return a pool at the end of a run, with the actors that are alive."""
    global _kept_pool
    keep = _keepers and _kept_pool is None and pool.connected
    if handles and (keep or pool.head is None):  # otherwise they end with their Ray
        pool.idle += _living(handles, "retire", RETIRE_SECONDS)
    if keep:
        _kept_pool = pool
    else:
        pool.shut_down()


@contextlib.contextmanager
def keep_workers() -> Iterator[None]:
    """Let the runs inside share one pool if they can; it is shut down at the end."""
    global _keepers, _kept_pool
    _keepers += 1
    try:
        yield
    finally:
        _keepers -= 1
        if not _keepers and _kept_pool is not None:
            pool, _kept_pool = _kept_pool, None
            pool.shut_down()
