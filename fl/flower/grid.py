"""Flower's Grid over nodes 1, 2, ..., N whose messages run on our workers, or come from the journal of a resumed run.

    push_messages -> ids                    nothing runs yet
    pull_messages(ids) -> [replies]         all pending messages run as one batch; replies are in the order of the ids
    send_and_receive = push, then pull      replies are in the order of the messages, for any number of workers

Two messages to one node run one after the other. An idle node is only a number. A node's Context is on disk between
messages. Timeouts and the messages' TTL are compared with the time of each client's own work. They are not applied by
default, because the load of the machine would decide which clients answer; a warning names the first late client.
"""

from __future__ import annotations

import logging
import math
import pickle
import threading
from collections.abc import Iterable, Sequence
from itertools import count
from typing import Protocol

import numpy as np
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid

from fl.execution.workers.executor import Executor
from fl.flower.journal import Journal, batch_key
from fl.flower.records import RecordSizes, record_sizes
from fl.flower.seeding import seeded
from fl.flower.worker import AppBatch, AppResult, AppTask
from fl.storage.clients import ClientStates

try:
    from flwr.supercore.run import Run
except ImportError:  # older versions of Flower
    from flwr.common.typing import Run  # type: ignore[no-redef,attr-defined]  # the type checker sees one version only

log = logging.getLogger(__name__)


class BatchObserver(Protocol):
    """Is told of every batch of messages that clients work on."""

    def batch_started(self, messages: Sequence[Message]) -> None:
        """Called before clients work."""

    def batch_finished(
        self, messages: Sequence[Message], sent: Sequence[RecordSizes], results: Sequence[AppResult]
    ) -> None:
        """Called after clients have worked; `sent` are the sizes of the messages."""


class LocalGrid(Grid):
    """A Grid whose nodes run on an executor.

    Args:
        executor: An executor that has been started with the app's `AppJob`.
        states: States of the nodes, by node id.
        run_id: Flower's id of the run.
        observer: Is told of every batch.
        journal: Journal of replies, or None.
        apply_timeouts: Whether the replies of late clients are dropped.
    """

    def __init__(
        self,
        executor: Executor,
        states: ClientStates,
        run_id: int,
        observer: BatchObserver,
        journal: Journal | None = None,
        apply_timeouts: bool = False,
    ) -> None:
        self.apply_timeouts, self.warned = apply_timeouts, False
        self.seen_errors: set[str] = set()
        self.executor, self.states, self.observer, self.journal = executor, states, observer, journal
        self._run = Run.create_empty(run_id)
        self.num_messages: dict[int, int] = {}  # per node that had one
        self.ids, self.lock = count(1), threading.RLock()
        self.pending: dict[str, Message] = {}
        self.timeouts: dict[str, float] = {}  # seconds, of pending messages that have one
        self.replies: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Make a message (the older API of Flower)."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return 1, 2, ..., N."""
        return range(1, self.states.population)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Accept messages; returns their ids."""
        with self.lock:
            return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        node = message.metadata.dst_node_id
        if node not in self.get_node_ids():
            raise ValueError(
                f"message to node {node}: not one of 1..{self.states.population - 1}; see grid.get_node_ids()"
            )
        if not message.has_content():
            raise ValueError(f"message to node {node}: it has no content")
        name = f"{next(self.ids):064x}"
        # Flower's own grids set these fields in the same way; older versions leave all three to the grid
        vars(message.metadata).update(_message_id=name, _run_id=self._run.run_id, _src_node_id=SUPERLINK_NODE_ID)
        self.pending[name] = message
        return name

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run pending messages if needed; returns the replies to these ids that were not pulled before."""
        with self.lock:
            wanted = list(dict.fromkeys(message_ids))
            if any(name in self.pending for name in wanted):
                self._run_pending()
            return [self.replies.pop(name) for name in wanted if name in self.replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send messages and return their replies, in order. `timeout`: seconds; see the module for its meaning."""
        with self.lock:
            names = list(self.push_messages(messages))
            if timeout is not None:
                self.timeouts |= dict.fromkeys(names, timeout)
            return self.pull_messages(names)

    def _run_pending(self) -> None:
        pending, self.pending = self.pending, {}
        messages = list(pending.values())
        recorded, key = None, ""
        replies: list[Message | None]
        if self.journal is not None:
            key = batch_key(messages)
            recorded = self.journal.take(key, messages)
        if recorded is None:
            replies = self._work(pending)
            if self.journal is not None:
                self.journal.add(key, replies)
        else:
            replies = recorded
            for message in messages:
                self._count(message.metadata.dst_node_id)
        self.timeouts.clear()
        for name, reply in zip(pending, replies):
            if reply is None:
                continue
            vars(reply.metadata).update(_message_id=f"{int(name, 16) | 1 << 255:064x}")
            self.replies[name] = reply

    def _work(self, pending: dict[str, Message]) -> list[Message | None]:
        """Let clients work on messages by id; returns the replies in their order, None for late ones."""
        messages = list(pending.values())
        self.observer.batch_started(messages)
        contents = {id(message.content): message.content for message in messages}  # the messages of a round share one
        places = {key: place for place, key in enumerate(contents)}
        pickled = [pickle.dumps(content, 5) for content in contents.values()]
        results: dict[str, AppResult] = {}
        for wave in _waves(pending):
            results |= zip(wave, self._run_wave(pickled, places, [pending[name] for name in wave]))
        done = [self._timed(name, pending[name], results[name]) for name in pending]
        self._log_errors(messages, done)
        sizes = {key: record_sizes(content) for key, content in contents.items()}
        self.observer.batch_finished(messages, [sizes[id(message.content)] for message in messages], done)
        return [None if result.late else result.reply for result in done]

    def _timed(self, name: str, message: Message, result: AppResult) -> AppResult:
        """Mark a result as late if timeouts are applied, else warn once that they are not."""
        timeout, ttl = self.timeouts.get(name, math.inf), message.metadata.ttl
        limit = min(timeout, ttl)
        if result.seconds <= limit:
            return result
        if self.apply_timeouts:
            if timeout <= ttl:
                return result._replace(late=True)
            reason = f"the message has expired: its TTL is {ttl:g} s"  # a loop that polls ends by this reply
            return result._replace(reply=Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, reason), reply_to=message))
        if not self.warned:
            self.warned = True
            log.warning(
                "node %d worked for %.1f s on %r, longer than the timeout of %g s. Its reply counts, because timeouts "
                "are not applied; --apply-timeouts (apply_timeouts=True) drops such replies. Said once",
                *(message.metadata.dst_node_id, result.seconds, message.metadata.message_type, limit),
            )
        return result

    def _log_errors(self, messages: Sequence[Message], results: Sequence[AppResult]) -> None:
        """Log the errors of a batch: equal ones once, and the traceback when an error is new."""
        found: dict[tuple[str, str], list[int]] = {}
        tracebacks: dict[str, str] = {}
        for message, result in zip(messages, results):
            if result.trouble:
                tracebacks.setdefault(result.trouble.summary, result.trouble.traceback)
                key = message.metadata.message_type, result.trouble.summary
                found.setdefault(key, []).append(message.metadata.dst_node_id)
        for (kind, summary), (node, *others) in found.items():
            text = summary if summary in self.seen_errors else f"{summary}\n{tracebacks[summary]}"
            self.seen_errors.add(summary)
            log.error("node %d, %s: %s%s", node, kind, text, f"\n(and {len(others)} other nodes)" if others else "")

    def _run_wave(self, contents: list[bytes], places: dict[int, int], messages: list[Message]) -> list[AppResult]:
        nodes = np.array([message.metadata.dst_node_id for message in messages])
        tasks = [
            AppTask(places[id(message.content)], message.metadata, self.num_messages.get(node, 0), tuple(state))
            for message, node, state in zip(messages, nodes.tolist(), self.states.locations(nodes).tolist())
        ]
        with seeded():  # the executor may draw, and the server's generators must not notice
            results = self.executor.run(AppBatch(contents, tasks))
        self.states.stage(nodes, np.array([result.state for result in results]))
        for task in tasks:
            self._count(task.metadata.dst_node_id)
        return results

    def _count(self, node: int) -> None:
        self.num_messages[node] = self.num_messages.get(node, 0) + 1


def _waves(messages: dict[str, Message]) -> list[list[str]]:
    """Split the ids into as few waves as possible, so that no node has two messages in one wave."""
    waves: list[list[str]] = []
    seen: dict[int, int] = {}
    for name, message in messages.items():
        node = message.metadata.dst_node_id
        turn = seen[node] = seen.get(node, -1) + 1
        if turn == len(waves):
            waves.append([])
        waves[turn].append(name)
    return waves
