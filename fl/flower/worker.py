"""The worker of Flower apps: it restores a node's Context, seeds, runs the ClientApp and keeps the reply.

    AppBatch  -- an executor of fl/execution, serial or Ray -->  AppResults, in the order of the messages

Each client gets its own copy of the content: contents arrive pickled, which is also the fastest way to copy them. An
error becomes an error reply, as in Flower, and the node's Context stays unchanged.
"""

from __future__ import annotations

import gc
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import cloudpickle
import numpy as np
from flwr.app import Context, Error, Message, Metadata, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from threadpoolctl import threadpool_limits

from fl import registry
from fl.errors import MachineError
from fl.execution.workers.process import configure_process
from fl.flower.node_config import NodeConfig, of_node
from fl.flower.records import RecordSizes, content_to_tree, copy_content, record_sizes, tree_to_content
from fl.flower.seeding import seed_all
from fl.storage.records import NO_RECORD
from fl.storage.segments import Segments
from fl.user_code import explain

Location = tuple[int, int, int]
Reduced = tuple[Callable[..., Any], tuple[Any, ...]]  # what `__reduce__` returns


# -- messages to workers and back: each is pickled as one array, which lies in shared memory --------------------------
def _to_array(value: Any, dumps: Callable[[Any, int], bytes] = pickle.dumps) -> np.ndarray:
    return np.frombuffer(dumps(value, 5), np.uint8)


@dataclass(frozen=True)
class AppJob:
    """What a worker needs for a whole run. Workers import the same modules as the driver.

    Args:
        app: The ClientApp.
        seed: Seed of the run.
        run_id: Flower's id of the run.
        nodes: Number of nodes.
        run_config: Flower's run config.
        states: Folder of the nodes' states.
        node_config: Flower's node config of all nodes, or a list with one for each node.
        source: The app's folder, whose files are named in errors; None if it has none.
    """

    app: ClientApp
    seed: int
    run_id: int
    nodes: int
    run_config: Mapping[str, Any]
    states: Path
    node_config: NodeConfig | Sequence[NodeConfig] = field(default_factory=dict)
    source: Path | None = None
    seeded: ClassVar[bool] = True

    def hold_shared(self, shared: Callable[[], AppJob]) -> None:
        """Share nothing: the job holds no tensors."""

    @property
    def stores(self) -> tuple[Path]:
        """The folder of segments that workers read and write."""
        return (self.states,)

    def records(self, batch: AppBatch, tasks: np.ndarray) -> np.ndarray:
        """Return the states that some tasks, (m,), read: int64 (n, 5), see fl/execution/stored_records.py."""
        rows = [(at, 0, *batch.messages[at].state) for at in tasks.tolist() if batch.messages[at].state[0] >= 0]
        return np.array(rows, np.int64).reshape(-1, 5)

    def worker(self, writer: int, open_store: Callable[[Path], Segments] = Segments) -> AppWorker:
        """Make a worker; `open_store` opens the folder of states."""
        return AppWorker(self, open_store)

    def __reduce__(self) -> Reduced:
        fields = tuple(getattr(self, each.name) for each in dataclass_fields(self))
        return _job, (list(sys.path), _to_array(fields, cloudpickle.dumps))


def _job(path: list[str], fields: np.ndarray) -> AppJob:
    sys.path += [place for place in path if place not in sys.path]
    return AppJob(*pickle.loads(fields.data))


class AppTask(NamedTuple):
    """A message to a node."""

    content: int  # index into the batch's contents
    metadata: Metadata
    number: int  # earlier messages to the node
    state: Location  # of the node's state


class Trouble(NamedTuple):
    """An error of a client."""

    summary: str  # file and line of the app, and the error; in lines
    traceback: str

    @staticmethod
    def of(error: BaseException) -> Trouble:
        """Describe the error that is being handled."""
        what = f"{type(error).__name__}: {error}"
        return Trouble(explain(error) or what.partition("\n")[0], traceback.format_exc())


class AppResult(NamedTuple):
    """The reply to a message."""

    reply: Message
    state: Location  # of the new state; NO_RECORD if there is none to write
    sizes: RecordSizes  # of the reply
    trouble: Trouble | None
    seconds: float  # of the client's work
    late: bool = False  # whether a timeout is over, so that the ServerApp does not get the reply


@dataclass(frozen=True)
class AppBatch:
    """Messages to different nodes, one task each; a `Dispatch` for fl/execution.

    `contents` are pickled RecordDicts, which messages share.
    """

    contents: list[bytes]
    messages: list[AppTask]
    pin: ClassVar[bool] = False
    threaded: ClassVar[bool] = False  # an app may do anything, so workers are processes and not threads

    @property
    def tasks(self) -> int:
        """Number of tasks."""
        return len(self.messages)

    def costs(self) -> np.ndarray:
        """Return the expected work per task: equal, because an app tells nothing about it."""
        return np.ones(len(self.messages))

    def missing(self, parts: Iterable[AppPartialResult]) -> np.ndarray:
        """Return the tasks without a result."""
        done = {at for part in parts for at in part.results}
        return np.array([at for at in range(len(self.messages)) if at not in done], np.int64)

    def gather(self, parts: Iterable[AppPartialResult], retried: int = 0) -> list[AppResult]:
        """Return the results of all workers, in the order of the messages."""
        found = {at: result for part in parts for at, result in part.results.items()}
        return [found[at] for at in range(len(self.messages))]

    def clients(self, task: int) -> int:
        """Return the number of nodes in a task."""
        return 1

    def error(self, task: int, detail: str) -> MachineError:
        """Return an error that names the node of a task."""
        metadata = self.messages[task].metadata
        return MachineError(f"{metadata.message_type!r} at node {metadata.dst_node_id}: {detail}")

    def __reduce__(self) -> Reduced:
        return _batch, (_to_array((self.contents, self.messages)),)


def _batch(fields: np.ndarray) -> AppBatch:
    return AppBatch(*pickle.loads(fields.data))


@dataclass(frozen=True)
class AppPartialResult:
    """The results of one worker, by place in the batch."""

    results: dict[int, AppResult]

    def __reduce__(self) -> Reduced:
        return _partial_result, (_to_array(self.results),)


def _partial_result(results: np.ndarray) -> AppPartialResult:
    return AppPartialResult(pickle.loads(results.data))


# -- the work ---------------------------------------------------------------------------------------------------------
class AppWorker:
    """Runs one message at a time, for any node."""

    def __init__(self, job: AppJob, open_store: Callable[[Path], Segments] = Segments) -> None:
        configure_process()
        threadpool_limits(1)
        gc.freeze()  # see `gc_frozen`
        if job.source is not None:
            registry.add_user_folder(job.source)
        self.job, self.states = job, open_store(job.states)

    def run(self, batch: AppBatch, tasks: Iterable[tuple[int, int]], segment: int) -> AppPartialResult:
        """Run the tasks of ranges [first, last)."""
        self.states.write_to(segment)
        places = (at for first, last in tasks for at in range(first, last))
        results = {}
        for at in places:
            task = batch.messages[at]
            results[at] = self._run_one(batch.contents[task.content], task)
        return AppPartialResult(results)

    def _run_one(self, content: bytes, task: AppTask) -> AppResult:
        message = make_message(pickle.loads(content), task.metadata)
        node = task.metadata.dst_node_id
        context = Context(
            run_id=self.job.run_id,
            node_id=node,
            node_config=of_node(self.job.node_config, node, self.job.nodes),
            state=tree_to_content(self.states.read(task.state)),
            run_config=dict(self.job.run_config),
        )
        seed_all(self.job.seed, "client", node, task.number)
        start = time.perf_counter()
        try:
            reply = self.job.app(message, context)
            if not isinstance(reply, Message):
                raise TypeError(f"the ClientApp answered {reply!r}, not a Message")
        except (Exception, SystemExit) as error:  # a client that calls sys.exit does not end the run
            code, reason = ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"{type(error)}:<'{error}'>"
            failed = Message(Error(code=code, reason=reason), reply_to=message)
            return AppResult(failed, NO_RECORD, [], Trouble.of(error), time.perf_counter() - start)
        seconds = time.perf_counter() - start
        state = NO_RECORD
        if len(context.state) or task.state[0] >= 0:
            state = self.states.append(content_to_tree(context.state))
        sizes: RecordSizes = []
        if reply.has_content():
            reply.content = copy_content(reply.content)  # so that the client cannot change it later
            sizes = record_sizes(reply.content)
        return AppResult(reply, state, sizes, None, seconds)

    def close(self) -> None:
        """Close the state files."""
        self.states.close()


def make_message(content: RecordDict, metadata: Metadata) -> Message:
    """Make a message with given metadata, as Flower does when it receives one."""
    return Message(content, metadata=metadata)  # type: ignore[call-overload]  # flwr declares only the senders' forms


@contextmanager
def gc_frozen() -> Iterator[None]:
    """Hide existing objects from the garbage collector.

    Flower collects garbage by hand after conversions. With torch loaded that takes 0.2 s each time if nothing is
    hidden.
    """
    before = gc.get_freeze_count()
    gc.freeze()
    try:
        yield
    finally:
        if not before:
            gc.unfreeze()
