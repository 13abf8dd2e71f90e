"""What a worker does for a message: the node's Context, the seeds of its address, the ClientApp, the reply.

    Batch of messages -- an executor of fl/execution, serial or Ray --> Outcomes, in the order of the messages

Every client gets its own copy of what was sent: contents come pickled, which is also the quickest way to copy them. An error
becomes a reply that says so, as in Flower, and the node's Context stays what it was.
"""

from __future__ import annotations

import gc
import pickle
import random
import sys
import traceback
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle
import numpy as np
import torch
from flwr.app import Context, Error, Message, Metadata
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from threadpoolctl import threadpool_limits

from fl.execution.workers.process import configure_process
from fl.flower import records
from fl.storage.segments import NO_RECORD, Segments
from fl.tensors.random import hash64


# -- what travels to workers and back: as one array, which lies in shared memory -----------------------------------------
def _array(value: Any, dumps=pickle.dumps) -> np.ndarray:
    return np.frombuffer(dumps(value, 5), np.uint8)


@dataclass(frozen=True)
class Job:
    """What a worker keeps for a run. What the driver can import, a worker can."""

    app: ClientApp
    seed: int
    run_id: int
    nodes: int
    run_config: Mapping[str, Any]
    states: Path  # the folder of the nodes' states

    def worker(self, writer: int) -> Worker:
        return Worker(self)

    def __reduce__(self):
        fields = self.app, self.seed, self.run_id, self.nodes, self.run_config, self.states
        return _job, (list(sys.path), _array(fields, cloudpickle.dumps))


def _job(path: list[str], fields: np.ndarray) -> Job:
    sys.path += [place for place in path if place not in sys.path]
    return Job(*pickle.loads(fields))


class Work(NamedTuple):
    """A message to a node."""

    content: int  # which of the batch's contents
    metadata: Metadata
    number: int  # how many messages the node has had before
    state: tuple[int, int, int]  # where the node's state is


class AppResult(NamedTuple):
    """What came of it."""

    reply: Message
    state: tuple[int, int, int]  # where the new state is; NO_RECORD if there is none to write
    sizes: records.RecordSizes  # of the reply
    trouble: str | None  # the traceback


@dataclass(frozen=True)
class Batch:
    """Messages to different nodes, a task each; an `Order` for fl/execution."""

    contents: list[bytes]  # RecordDicts, pickled
    works: list[Work]
    pin = False
    free = False  # apps are anything

    @property
    def tasks(self) -> int:
        return len(self.works)

    def costs(self) -> np.ndarray:
        return np.ones(len(self.works))

    def missing(self, parts: Iterable[PartialResult]) -> np.ndarray:
        done = {at for part in parts for at in part.outcomes}
        return np.array([at for at in range(len(self.works)) if at not in done], np.int64)

    def gather(self, parts: Iterable[PartialResult], retried: int = 0) -> list[AppResult]:
        found = {at: outcome for part in parts for at, outcome in part.outcomes.items()}
        return [found[at] for at in range(len(self.works))]

    def where(self, task: int) -> str:
        metadata = self.works[task].metadata
        return f"{metadata.message_type!r} at or near node {metadata.dst_node_id}"

    def __reduce__(self):
        return _batch, (_array((self.contents, self.works)),)


def _batch(fields: np.ndarray) -> Batch:
    return Batch(*pickle.loads(fields))


@dataclass(frozen=True)
class PartialResult:
    """What one worker made of a batch, by place in it."""

    outcomes: dict[int, AppResult]

    def __reduce__(self):
        return _part, (_array(self.outcomes),)


def _part(outcomes: np.ndarray) -> PartialResult:
    return PartialResult(pickle.loads(outcomes))


# -- the work ---------------------------------------------------------------------------------------------------------
class Worker:
    """One message at a time, wherever it comes from."""

    def __init__(self, job: Job):
        configure_process()
        threadpool_limits(1)
        gc.freeze()  # see `frozen`
        self.job, self.states = job, Segments(job.states)

    def run(self, batch: Batch, tasks: Iterable[tuple[int, int]], segment: int) -> PartialResult:
        self.states.write_to(segment)
        places = (at for first, last in tasks for at in range(first, last))
        return PartialResult({at: self.one(batch.contents[batch.works[at].content], batch.works[at]) for at in places})

    def one(self, content: bytes, work: Work) -> AppResult:
        message = Message(pickle.loads(content), metadata=work.metadata)
        node, state, trouble = work.metadata.dst_node_id, NO_RECORD, None
        context = Context(
            run_id=self.job.run_id,
            node_id=node,
            node_config={"partition-id": node - 1, "num-partitions": self.job.nodes},
            state=records.content(self.states.read(work.state)),
            run_config=dict(self.job.run_config),
        )
        seed_all(self.job.seed, "client", node, work.number)
        try:
            reply = self.job.app(message, context)
            if not isinstance(reply, Message):
                raise TypeError(f"the ClientApp answered {reply!r}, not a Message")
        except Exception as error:
            trouble = traceback.format_exc()
            code, reason = ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"{type(error)}:<'{error}'>"
            return AppResult(Message(Error(code=code, reason=reason), reply_to=message), state, [], trouble)
        if len(context.state) or work.state[0] >= 0:
            state = self.states.append(records.tree(context.state))
        sizes: records.RecordSizes = []
        if reply.has_content():
            reply.content = records.copied(reply.content)  # the client cannot change it any more
            sizes = records.sizes(reply.content)
        return AppResult(reply, state, sizes, trouble)

    def close(self) -> None:
        self.states.close()


def seed_all(*address: int | str) -> None:
    """Seed `random`, numpy's and torch's global generators by an address."""
    word = int(hash64(*address))
    random.seed(word)
    np.random.seed(word & 0xFFFFFFFF)
    torch.default_generator.manual_seed(
        word >> 1
    )  # torch.manual_seed also formats a stack for a GPU that nobody has used
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(word >> 1)


@contextmanager
def seeded(*address: int | str):
    """The global generators, seeded by an address if there is one, and given back as they were."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    if address:
        seed_all(*address)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


@contextmanager
def frozen():
    """Flower collects garbage by hand after conversions: spare it what was there before the app, 0.2 s a time with torch loaded."""
    before = gc.get_freeze_count()
    gc.freeze()
    try:
        yield
    finally:
        if not before:
            gc.unfreeze()
