"""Ray workers: the actors of a pool, one request per dispatch, on one machine or on every node of a cluster.

    driver                                node of the driver                         another node
    Region: the dispatch         ----->   mapped by every worker                     sent once to a Region there
    runs of tasks                ----->   SharedQueue per node: own run, then steal  likewise
    gather              <-----            Region per worker: its partial result      sent with the answer
    stored records      ----->            read from the run directory                sent if not written there
                        <-----            appended to the run directory              sent after the partial result

If a worker dies, its unfinished tasks run again on the others, and the reduction tree gives the same bits. The client
that a worker died with is tried once more; if that ends a worker again, the run stops and names the client.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fl import registry
from fl.errors import MachineError
from fl.execution.isolation import isolated
from fl.execution.workers.byte_stream import HungUp
from fl.execution.workers.channel import Member, local_channel, remote_channel
from fl.execution.workers.deaths import Deaths, late
from fl.execution.workers.executor import Dispatch, Job, nothing
from fl.execution.workers.folders import new_name
from fl.execution.workers.gpus import GpuShares
from fl.execution.workers.limits import warn_if_memory_is_small
from fl.execution.workers.ray_pool import ActorHandle, RayPool, acquire_pool, release_pool
from fl.execution.workers.shared import Handle, Region, SharedFiles, SharedQueue
from fl.execution.workers.transfer import NodeShare, Transfer
from fl.storage.clients import ClientStates
from fl.tensors.trees import tree_map
from fl.tracking import spans

ATTEMPTS = 4  # at a dispatch whose workers die, or to create workers, before the run stops
FEWER = "If memory ran out, use fewer execution.workers or a smaller execution.chunk"

log = logging.getLogger(__name__)


class Ray:
    """Actors of one core each.

    Args:
        workers: number of actors.
        address: join a running cluster ("auto" finds it); `None` starts Ray on this machine.
        gpus: the actors' shares of GPUs; `None`: they see no GPU.
        client_seconds: longest time for one client; a worker ends after a longer one.
    """

    remote = False

    def __init__(
        self,
        workers: int,
        address: str | None = None,
        gpus: GpuShares | None = None,
        client_seconds: float | None = None,
    ):
        self.workers, self.address, self.gpus, self.client_seconds = workers, address, gpus, client_seconds
        self.active = workers  # how many of them get tasks
        self.pool: RayPool | None = None
        self.files: SharedFiles | None = None
        self.members: list[Member] = []

    def prepare(self) -> None:
        """Begin to start Ray and its workers."""
        if self.address is None:
            warn_if_memory_is_small()
        self.pool = acquire_pool(self.workers, self.address, self.gpus)

    def start(self, job: Job, states: ClientStates) -> None:
        """Wait for the workers, and give them the job."""
        if self.pool is None:
            self.prepare()
        assert self.pool is not None
        self.states, self.files = states, SharedFiles(new_name())
        self.queue, self.deaths = SharedQueue(self.files.queue), Deaths(self.client_seconds)
        self.job, self.region = Region(self.files), Region(self.files)
        self.job_handle = self.job.write(job)
        job.hold_shared(self.job_handle.open)
        self.job_memory: Any = None  # in the object store, for other nodes
        self.attempts = 0
        self.pool.connect()
        import ray

        self.ray, self.local = ray, ray.get_runtime_context().get_node_id()
        self.transfer = Transfer(job, states, self.local)
        self._add_workers()

    def use_workers(self, count: int) -> None:
        """Divide the following dispatches among the first `count` workers."""
        self.active = count

    # -- workers --------------------------------------------------------------------------------------------------
    def _with_job(self, handles: list[ActorHandle]) -> list[Member]:
        """Give actors the job, and open channels to them."""
        members = [Member(h.actor, self.states.new_writer(), h.node, h.pid) for h in handles]
        if self.job_memory is None:
            self.job_memory = self.transfer.put_job(self.job, self.job_handle, members)
        assert self.files is not None
        common = registry.sources(), self.job_handle, spans.recording()
        more = self.files.name, self.local, self.client_seconds
        memory_for = {self.local: None}
        self.ray.get(
            [m.actor.setup.remote(*common, memory_for.get(m.node, self.job_memory), m.writer, *more) for m in members]
        )
        for m in members:
            if m.node == self.local:
                m.channel = local_channel(m.actor, self.files.folder.path / f"socket-{m.pid}")
                continue
            m.channel = remote_channel(m.actor)
            if spans.recording():
                m.clock_shift = spans.clock_shift(partial(m.channel.ask, "clock"))
        return members

    def _bury(self, member: Member) -> None:
        """Take a worker for dead whose connection is gone; its clients run again on others."""
        member.trouble = member.channel.trouble()
        self.ray.kill(member.actor)
        member.actor = None

    def _replace_dead(self) -> None:
        """Create workers in place of dead ones."""
        if any(m.actor is None for m in self.members):
            for member in self.members:
                if member.actor is None:
                    member.channel.close()
            self.members = [m for m in self.members if m.actor is not None]
            self._add_workers()

    def _add_workers(self) -> None:
        """Create workers that are missing. If they do not start, the others continue alone.

        Raises:
            MachineError: no worker is alive after `ATTEMPTS` attempts.
        """
        assert self.pool is not None
        for _ in range(ATTEMPTS):
            living, handles = len(self.members), list[ActorHandle]()
            missing = self.workers - living
            try:
                if (room := self.pool.room(living)) < missing and room + living:  # a node is lost
                    missing = room
                    log.warning("the cluster has lost a node; continuing with %d workers", living + room)
                handles = self.pool.acquire(missing, living)
                self.members += self._with_job(handles)
                self.states.kept = frozenset(m.writer for m in self.members if m.node != self.local)
                return
            except self.ray.exceptions.GetTimeoutError:
                problem = "the cluster has no room for new workers"
            except (self.ray.exceptions.RayActorError, HungUp):
                problem = "new workers died before they worked"
            for handle in handles:
                self.ray.kill(handle.actor)
            if self.members:
                log.warning("%s; continuing with %d", problem, len(self.members))
                return
        raise MachineError(f"{problem}, {ATTEMPTS} times, and no other worker is alive. {FEWER}")

    # -- dispatches -----------------------------------------------------------------------------------------------
    def run(self, dispatch: Dispatch, meanwhile: Callable[[], None] = nothing) -> Any:
        """Have the workers work through all tasks; tasks of workers that die run again."""
        parts: list[Any] = []
        missing, retried = np.arange(dispatch.tasks), 0
        self.deaths.begin(dispatch)
        for attempt in range(ATTEMPTS):
            self._follow_compaction()
            self._replace_dead()
            parts += self._attempt(dispatch, missing, not dispatch.pin or attempt > 0, meanwhile)
            missing = dispatch.missing(parts)
            if not len(missing):
                result = dispatch.gather(parts, retried)
                for member in self.members:
                    member.trim()
                return result
            retried += len(missing)
            parts = copy.deepcopy(parts)  # they are views of memory that the workers are about to write again
        raise MachineError(
            f"workers die faster than they are replaced: {ATTEMPTS} times in one exchange, "
            f"the last one because {self.deaths.reason}. {FEWER}"
        )

    def _follow_compaction(self) -> None:
        """Have workers on other nodes compact what they have written, as the driver has done with its copy."""
        moved, self.states.moved = self.states.moved, {}
        members = [m for m in self.members if m.actor is not None and m.writer in moved]
        for member in members:
            member.channel.send("compact", self.states.segment(member.writer), moved[member.writer])
        failure: Exception | None = None
        for member in members:
            try:
                member.channel.receive()
            except HungUp:
                self._bury(member)
            except Exception as error:  # it has not what the driver takes it to have
                self._bury(member)
                failure = failure or error
        if failure is not None:
            raise failure

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Return fn(*args), computed on the driver's node: by a worker, or in this process if it has none."""
        for _ in range(ATTEMPTS):
            self._replace_dead()
            member = next((m for m in self.members if m.node == self.local), None)
            if member is None:
                with isolated():
                    return fn(*args)
            asked, handle = time.perf_counter(), self._share((fn, args))
            try:
                member.channel.send("call", handle)
                return tree_map(lambda leaf: leaf.clone(), self._answer(member, asked))
            except HungUp:
                self._bury(member)
        raise MachineError(f"server work {fn} ended {ATTEMPTS} workers. {FEWER}")

    def _share(self, value: Any) -> Handle:
        """Write a value where every worker on this node can open it."""
        with spans.span("transfer", "order"):
            return self.region.write(value)

    def _answer(self, member: Member, asked: float) -> Any:
        """Wait for a worker's answer, and return its value."""
        with spans.span("waits", "workers"):
            handle, record, new_records = member.channel.receive()
        spans.add_worker_record(f"worker {member.pid} on node {member.node[:8]}", asked, record, member.clock_shift)
        assert self.files is not None
        if member.node == self.local and handle.path is not None:
            self.files.say_if_on_disk(Path(handle.path))
        handle = self.transfer.take(member, new_records, handle)
        with spans.span("transfer", "answer"):
            return handle.open()

    def _attempt(self, dispatch: Dispatch, tasks: np.ndarray, steal: bool, meanwhile: Callable[[], None]) -> list[Any]:
        """Send each worker its share of the tasks; return the partial results of the workers that lived.

        After an error it waits for the answers of all workers that have begun, and then raises it. Otherwise the next
        request would get the answer to this one.
        """
        handle, members = self._share(dispatch), self.members[: self.active]
        self.attempts += 1
        parts: list[Any] = []
        requests: list[tuple[Member, int, float]] = []
        dead: list[tuple[Member, int]] = []
        failure: Exception | None = None
        try:
            for share in self.transfer.shares(dispatch, members, tasks):
                runs = [run[0] if run else (0, 0) for run in share.own] + [run for own in share.own for run in own[1:]]
                held = self._held(share, handle, dead)
                for index, member in enumerate(share.members):
                    if member.actor is None:
                        continue
                    with spans.span("transfer", "call"):
                        asked, segment = time.perf_counter(), self.states.segment(member.writer)
                        member.channel.send("run", held, self.attempts, runs, steal, index, segment)
                        requests.append((member, index, asked))
            meanwhile()
        except Exception as error:
            failure = error
        for member, index, asked in requests:
            try:
                parts.append(self._answer(member, asked))
            except HungUp:
                self._bury(member)
                dead.append((member, index))
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure
        for member, index in dead:
            self.deaths.add(member.pid, *self._last_words(member, index), member.trouble)
        return parts

    def _held(self, share: NodeShare, handle: Handle, dead: list[tuple[Member, int]]) -> Handle:
        """Bring a dispatch to a node; return its handle there. Workers that die while they take it go to `dead`."""
        if share.members[0].node == self.local:
            return handle
        for index, member in enumerate(share.members):
            try:
                return self.transfer.deliver(member, self.region, handle, share.records)
            except HungUp:
                self._bury(member)
                dead.append((member, index))
            except Exception:
                if member.channel.stream.closed:  # in the middle of a message
                    self._bury(member)
                raise
        return handle  # nobody is left to take it

    def _last_words(self, member: Member, index: int) -> tuple[int | None, str]:
        """Return the task that a dead worker had taken, if known, and where it was if that took too long."""
        assert self.files is not None
        if member.node == self.local:
            return self.queue.present_task(self.attempts, index), late(self.files.folder.path, member.pid)
        for other in self.members:  # one on the same node, which sees the files
            if other.node == member.node and other.actor is not None:
                try:
                    found: tuple[int | None, str] = other.channel.ask("last_words", self.attempts, index, member.pid)
                    return found
                except HungUp:
                    continue  # the next dispatch notices it
        return None, ""

    def close(self) -> None:
        """Return the workers to the pool, and remove shared files."""
        if self.pool is not None:
            pool, self.pool = self.pool, None
            for member in self.members:
                member.channel.close()
            release_pool(pool, [ActorHandle(m.actor, m.node, m.pid) for m in self.members if m.actor is not None])
        if self.files is not None:
            self.queue.close()
            self.files.remove()
