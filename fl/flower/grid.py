"""Flower's Grid over nodes 1, 2, ..., N whose messages run on our workers (or come from the journal of a run that goes on).

    push_messages -> ids                    nothing runs yet
    pull_messages(ids) -> [replies]         what is pending runs as one batch; the replies in the order of the ids
    send_and_receive = push, then pull      a list, in the order of the messages, however many workers there are

Two messages to one node run one after the other. Timeouts are of the wall clock and would let the machine's load decide who
answers: they are not applied. Idle nodes are numbers; what a node's Context keeps is on disk from one message to the next.
"""

from __future__ import annotations

import logging
import pickle
import threading
from collections.abc import Iterable, Sequence
from itertools import count
from typing import Protocol

import numpy as np
from flwr.app import Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid

from fl.execution.workers.executor import Executor
from fl.flower import journal as journals
from fl.flower import records
from fl.flower.journal import Journal
from fl.flower.records import RecordSizes
from fl.flower.worker import AppResult, Batch, Work, seeded
from fl.storage.clients import ClientStates

try:
    from flwr.supercore.run import Run
except ImportError:  # before 1.3x
    from flwr.common.typing import Run

log = logging.getLogger(__name__)


class Observer(Protocol):
    """Told of every batch of messages that clients work on, before and after."""

    def begins(self, messages: Sequence[Message]) -> None: ...

    def ended(
        self, messages: Sequence[Message], sent: Sequence[RecordSizes], outcomes: Sequence[AppResult]
    ) -> None: ...


class LocalGrid(Grid):
    """`executor` has been started with a `Job` of the app."""

    def __init__(
        self,
        executor: Executor,
        states: ClientStates,
        run_id: int,
        observer: Observer,
        journal: Journal | None = None,
    ):
        self.executor, self.states, self.observer, self.journal = executor, states, observer, journal
        self._run = Run.create_empty(run_id)
        self.numbers: dict[int, int] = {}  # messages per node, of those that had one
        self.ids, self.lock = count(1), threading.RLock()
        self.pending: dict[str, Message] = {}
        self.replies: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return range(1, self.states.population)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
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
        # Flower's own grids set these so; older versions leave all three to the grid
        vars(message.metadata).update(_message_id=name, _run_id=self._run.run_id, _src_node_id=SUPERLINK_NODE_ID)
        self.pending[name] = message
        return name

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        with self.lock:
            wanted = list(dict.fromkeys(message_ids))
            if any(name in self.pending for name in wanted):
                self._run_pending()
            return [self.replies.pop(name) for name in wanted if name in self.replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        with self.lock:
            return self.pull_messages(self.push_messages(messages))

    def _run_pending(self) -> None:
        pending, self.pending = self.pending, {}
        messages = list(pending.values())
        known, key = None, ""
        if self.journal is not None:
            key = journals.key(messages)
            known = self.journal.take(key, messages)
        if known is None:
            replies = self._work(pending)
            if self.journal is not None:
                self.journal.add(key, replies)
        else:
            replies = known
            for message in messages:
                self._count(message.metadata.dst_node_id)
        for name, reply in zip(pending, replies):
            vars(reply.metadata).update(_message_id=f"{int(name, 16) | 1 << 255:064x}")
            self.replies[name] = reply

    def _work(self, pending: dict[str, Message]) -> list[Message]:
        """The replies of clients that work on these messages, by the ids they came under."""
        messages = list(pending.values())
        self.observer.begins(messages)
        contents = {id(message.content): message.content for message in messages}  # a round's messages share theirs
        places = {key: place for place, key in enumerate(contents)}
        pickled = [pickle.dumps(content, 5) for content in contents.values()]
        outcomes: dict[str, AppResult] = {}
        for wave in _waves(pending):
            outcomes |= zip(wave, self._run_wave(pickled, places, [pending[name] for name in wave]))
        done = [outcomes[name] for name in pending]
        sizes = {key: records.sizes(content) for key, content in contents.items()}
        self.observer.ended(messages, [sizes[id(message.content)] for message in messages], done)
        return [outcome.reply for outcome in done]

    def _run_wave(self, contents: list[bytes], places: dict[int, int], messages: list[Message]) -> list[AppResult]:
        nodes = np.array([message.metadata.dst_node_id for message in messages])
        works = [
            Work(places[id(message.content)], message.metadata, self.numbers.get(node, 0), tuple(state))
            for message, node, state in zip(messages, nodes.tolist(), self.states.locations(nodes).tolist())
        ]
        with seeded():  # the server's draws are its own
            outcomes = self.executor.run(Batch(contents, works))
        self.states.stage(nodes, np.array([outcome.state for outcome in outcomes]))
        for work, outcome in zip(works, outcomes):
            self._count(work.metadata.dst_node_id)
            if outcome.trouble:
                log.error("node %d, %s: %s", work.metadata.dst_node_id, work.metadata.message_type, outcome.trouble)
        return outcomes

    def _count(self, node: int) -> None:
        self.numbers[node] = self.numbers.get(node, 0) + 1


def _waves(messages: dict[str, Message]) -> list[list[str]]:
    """The ids in as few parts as let no node have two messages in one."""
    waves: list[list[str]] = []
    seen: dict[int, int] = {}
    for name, message in messages.items():
        node = message.metadata.dst_node_id
        turn = seen[node] = seen.get(node, -1) + 1
        if turn == len(waves):
            waves.append([])
        waves[turn].append(name)
    return waves
