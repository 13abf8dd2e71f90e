"""Ray workers: the actors of a crew, one question to each and exchange, on one machine or on every node of a cluster.

    driver                         node of the driver                      another node
    Region: the order      ----->  mapped by every worker                  carried once by the object store
    runs of tasks          ----->  Queue per node: own run, then steal     likewise
    gather  <-----                 Region per worker: its part             carried by the return value

A worker that dies takes its unreturned tasks with it: they are run again on the others, and the tree gives the same bits.
"""

from __future__ import annotations

import copy
import itertools
import logging
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fl import registry
from fl.execution.workers.channel import Channel, LocalChannel, RemoteChannel, WorkerDied
from fl.execution.workers.executor import Dispatch, Job
from fl.execution.workers.ray_pool import ActorHandle, RayPool, acquire_pool, release_pool
from fl.execution.workers.shared import Handle, Region, folder, new_prefix, remove
from fl.execution.workers.task_queue import cut
from fl.storage.clients import ClientStates
from fl.tensors.trees import tree_map
from fl.tracking import spans

ATTEMPTS = 4  # at an exchange whose workers die, before the run is given up

log = logging.getLogger(__name__)


@dataclass
class _Member:
    """A worker with its job, and the line to it; `actor` is `None` once it is dead."""

    actor: Any
    writer: int
    node: str
    pid: int
    line: Channel
    shift: float = 0.0  # our clock less its, where spans are recorded


class Ray:
    """`workers` actors of one core each, which share the GPUs if they want any; `address` joins a running cluster ("auto" finds it)."""

    remote = False

    def __init__(self, workers: int, address: str | None = None, gpus: bool = False):
        self.workers, self.address, self.gpus = workers, address, gpus
        self.at_work = workers  # of them, how many orders are shared out among
        self.crew: RayPool | None = None
        self.prefix: str | None = None  # of shared files
        self.members: list[_Member] = []

    def prepare(self) -> None:
        self.crew = acquire_pool(self.workers, self.address, self.gpus)

    def start(self, job: Job, states: ClientStates) -> None:
        if self.crew is None:
            self.prepare()
        self.states, self.prefix = states, new_prefix()
        self.job, self.region = Region(self.prefix), Region(self.prefix)
        self.job_handle, self.job_memory = self.job.write(job), None
        handles = self.crew.take(self.workers)
        import ray

        self.ray, self.local = ray, ray.get_runtime_context().get_node_id()
        self.attempts = 0
        self.members = self._employed(handles)

    # -- workers --------------------------------------------------------------------------------------------------
    def _employed(self, handles: list[ActorHandle]) -> list[_Member]:
        """Workers, given the job."""
        members = [_Member(r.actor, self.states.new_writer(), r.node, r.pid, RemoteChannel(r.actor)) for r in handles]
        if any(m.node != self.local for m in members) and self.job_memory is None:
            self.job_memory = self.ray.put(self.job.copy(self.job_handle))
        common = (registry.sources(), self.job_handle, spans.recording())
        self.ray.get(
            [
                m.actor.setup.remote(*common, self._for(m, self.job_memory), m.writer, self.prefix, self.local)
                for m in members
            ]
        )
        for m in members:
            if m.node == self.local:
                m.line = LocalChannel(m.actor, folder() / f"{self.prefix}-line-{m.pid}")
            elif spans.recording():
                m.shift = spans.clock_shift(lambda actor=m.actor: self.ray.get(actor.clock.remote()))
        return members

    def _replace_dead(self) -> None:
        """New workers for the dead; where the cluster has no room for them, the living go on alone."""
        if all(m.actor is not None for m in self.members):
            return
        self.members = [m for m in self.members if m.actor is not None]
        try:
            self.members += self._employed(self.crew.take(self.workers - len(self.members)))
        except (self.ray.exceptions.GetTimeoutError, self.ray.exceptions.RayActorError):
            log.warning("no room for new workers; going on with %d", len(self.members))
            if not self.members:
                raise

    def _for(self, member: _Member, memory: Any) -> Any:
        """The value's bytes for a worker that does not see this node's memory."""
        return None if member.node == self.local else memory

    def use_workers(self, count: int) -> None:
        """Divide the following dispatches among the first `count` workers; `fl tune` compares worker counts this way."""
        self.at_work = count

    # -- orders ---------------------------------------------------------------------------------------------------
    def run(self, order: Dispatch) -> Any:
        parts: list[Any] = []
        missing, retried = np.arange(order.tasks), 0
        for attempt in range(ATTEMPTS):
            self._replace_dead()
            parts += self._attempt(order, missing, steal=not order.pin or attempt > 0)
            missing = order.missing(parts)
            if not len(missing):
                return order.gather(parts, retried)
            retried += len(missing)
            parts = copy.deepcopy(parts)  # they are views of memory that the living are about to write again
        raise RuntimeError(
            f"{order.where(missing[0])}: workers died {ATTEMPTS} times. If they ran out of memory, use fewer "
            "execution.workers or a smaller execution.chunk"
        )

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        for _ in range(ATTEMPTS):
            self._replace_dead()
            handle, memory = self._share((fn, args))
            member, asked = self.members[0], time.perf_counter()
            try:
                member.line.ask("call", handle, self._for(member, memory))
                return tree_map(lambda leaf: leaf.clone(), self._answer(member, asked))
            except WorkerDied:
                member.actor = None
        raise RuntimeError(
            f"server work {fn} killed {ATTEMPTS} workers; if memory ran out, use fewer execution.workers"
        )

    def _share(self, value: Any) -> tuple[Handle, Any]:
        """Write a value where every worker can open it."""
        with spans.span("transfer", "order"):
            handle = self.region.write(value)
            far = any(m.node != self.local for m in self.members)
            return handle, self.ray.put(self.region.copy(handle)) if far else None

    def _answer(self, member: _Member, asked: float) -> Any:
        """What a worker answers."""
        with spans.span("waits", "workers"):
            handle, record = member.line.answer()
        spans.add_worker_record(f"worker {member.pid} on node {member.node[:8]}", asked, record, member.shift)
        with spans.span("transfer", "answer"):
            return handle.open()

    def _attempt(self, order: Dispatch, tasks: np.ndarray, steal: bool) -> list[Any]:
        """One question to each worker; the parts of those who lived."""
        handle, memory = self._share(order)
        self.attempts += 1
        parts, asked, failure = [], [], None
        members = sorted(self.members[: self.at_work], key=lambda m: m.node)
        shares = iter(cut(order.costs()[tasks], tasks, len(members)))
        for _, team in itertools.groupby(members, key=lambda m: m.node):
            team = list(team)
            own = [next(shares) for _ in team]
            runs = [share[0] if share else (0, 0) for share in own] + [run for share in own for run in share[1:]]
            for me, member in enumerate(team):
                share = pickle.dumps((handle, self.attempts, runs, steal, me, self.states.segment(member.writer)))
                with spans.span("transfer", "call"):
                    asked.append((member, time.perf_counter()))
                    member.line.ask("run", share, self._for(member, memory))
        for member, since in asked:
            try:
                parts.append(self._answer(member, since))
            except WorkerDied:
                log.warning("worker %d died; its clients run again", member.pid)
                member.actor = None
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return parts

    def close(self) -> None:
        if self.crew is not None:
            crew, self.crew = self.crew, None
            for member in self.members:
                member.line.close()
            release_pool(crew, [ActorHandle(m.actor, m.node, m.pid) for m in self.members if m.actor is not None])
        if self.prefix is not None:
            remove(self.prefix)
