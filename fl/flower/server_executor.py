"""The executor of a deployed run: it sends each client of a cohort a message and folds the replies.

    run(dispatch)   -> messages down -> replies up -> decode, server transforms, reduction

The server's own evaluation runs in this process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from fl.communication.codec import Codec
from fl.communication.codecs.identity import Identity
from fl.communication.keys import down_key
from fl.errors import ConfigError
from fl.execution.client_work import ClientWork
from fl.execution.dispatch import DispatchResult, ExchangeDispatch
from fl.execution.exchange_worker import ExchangeWorker
from fl.execution.job import Job
from fl.execution.stages import during
from fl.execution.worker import Worker
from fl.execution.workers import executor
from fl.flower.call import (
    CALL,
    METRICS,
    ROWS,
    SETTINGS,
    SUMS,
    Call,
    ClientReply,
    Failure,
    GroupForm,
    PatchForm,
    Written,
    patch_record,
)
from fl.flower.deployable import OTHER_MODULE
from fl.flower.group_records import read_group, record_to_tree, tensor_to_array, tree_to_record, write_group
from fl.flower.records import get_arrays, get_metrics, numbers
from fl.flower.static_records import StaticParts, StaticSender
from fl.flower.supernodes import SuperNodes
from fl.method.messages import Update
from fl.method.unknown_state import UnknownState
from fl.storage.clients import ClientStates
from fl.tensors.trees import Tree

NO_SUPERNODE = "the client has no SuperNode"


class FlowerExecutor:
    """An executor whose clients are the SuperNodes of a grid.

    Args:
        grid: Flower's connection to the SuperNodes.
        digest: Digest of the configuration. A client with another one is refused.
        wait: Seconds to wait for missing SuperNodes.
        timeout: Seconds to wait for replies; None waits without limit.
    """

    remote = True

    def __init__(self, grid: Grid, digest: str, wait: float, timeout: float | None) -> None:
        self.grid, self.timeout = grid, timeout
        self.nodes = SuperNodes(grid, digest, wait, timeout)
        self.stored: dict[int, dict[str, int]] = {}  # client -> static group -> version that it has stored
        self.workers = 1

    def prepare(self) -> None:
        """Do nothing: SuperNodes start by themselves."""

    def start(self, job: executor.Job, states: ClientStates) -> None:
        """Wait until every client has a SuperNode."""
        if not isinstance(job, Job):
            raise TypeError(f"a deployment runs the exchanges of a configuration, not a {type(job).__name__}")
        self.states, self.writer = states, states.new_writer()
        self.drops = job.on_error == "drop"
        self.worker = Worker(job, self.writer)
        self.workers = states.population
        self.nodes.find(range(states.population))

    def run(self, dispatch: ExchangeDispatch, meanwhile: Callable[[], None] = executor.nothing) -> DispatchResult:
        """Run one exchange or one evaluation."""
        if dispatch.kind == "evaluate_server":
            result = self.worker.run(dispatch, [(0, dispatch.tasks)], self.states.segment(self.writer))
            return dispatch.gather([result])
        if dispatch.skeleton is not None:
            raise ConfigError("strategy", OTHER_MODULE)
        exchange = self.worker.begin(dispatch)
        replies = self._replies(self._messages(exchange))
        for position in range(len(dispatch.cohort)):
            at = np.array([position])
            try:
                self._receive(exchange, at, replies.get(position, NO_SUPERNODE))
            except Exception as error:
                self._failed(exchange, at, error)
        result = dispatch.gather([exchange.partial_result()])
        if result.value is None and exchange.errors and not isinstance(exchange, ClientWork):
            raise TimeoutError(f"no client has evaluated the model of round {dispatch.round}: {exchange.errors[0]}")
        return result

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Run server work in this process."""
        return fn(*args)

    def close(self) -> None:
        """Close the worker of the server's own evaluations."""
        if hasattr(self, "worker"):
            self.worker.close()

    def _failed(self, exchange: ExchangeWorker, at: np.ndarray, error: Exception) -> None:
        """Raise the error with its client, or leave the client out: of the round, or of an evaluation."""
        if isinstance(exchange, ClientWork):
            exchange.failed(at, error)
            return
        dispatch = exchange.dispatch
        if not isinstance(error, ConnectionError) or not self.drops:  # only a lost client is left out of an evaluation
            raise exchange.error(dispatch.cohort[at], error, dispatch.work) from None
        exchange.errors.append(f"client {dispatch.cohort[at[0]]}, stage {dispatch.work!r}: {error}")
        exchange.columns.add(at, {"dropped": True})
        exchange.fold.add(0, int(at[0]), None)

    # -- down -----------------------------------------------------------------------------------------------------
    def _messages(self, exchange: ExchangeWorker) -> dict[int, Message]:
        """Make one message per position whose client has a SuperNode. Shared groups are encoded once."""
        d, job = exchange.dispatch, exchange.job
        source = d.original or d.broadcast
        codec: Codec = job.down if d.original else Identity()
        key = partial(down_key, job.seed, d.number)
        shared = {n: write_group(codec, tree, key(n)) for n, tree in source.shared.items() if n not in source.hidden}
        static = StaticSender(source.static, codec, job.seed)
        self.nodes.find(map(int, d.cohort), self.drops)
        encoded = d.original is not None
        same_values = encoded or job.down.exact  # what clients have stored is what this dispatch sends
        messages: dict[int, Message] = {}
        for position, client in enumerate(map(int, d.cohort)):
            if client not in self.nodes.of:
                continue
            groups: dict[str, Written] = {
                name: (record, form, "shared" if encoded else "") for name, (record, form, _) in shared.items()
            }
            for name, tree in d.broadcast.groups_for(client, UnknownState()).items():
                record, form, sizes = write_group(job.down, tree, exchange.downloads.own_key(client, name))
                groups[name] = (record, form, "own")
                if d.kind == "work":
                    exchange.count("down", name, np.array([position]), sizes)
            parts = static.parts(self.stored.get(client, {}) if same_values else {})
            messages[position] = self._message(d, position, client, groups | parts.whole, parts)
        return messages

    def _message(
        self, d: ExchangeDispatch, position: int, client: int, groups: Mapping[str, Written], static: StaticParts
    ) -> Message:
        config = d.broadcast.config(client) if callable(d.broadcast.config) else d.broadcast.config
        settings, tensors = tree_to_record(dict(config))
        new = {name: s.version for name, s in d.broadcast.static.items() if name not in static.stored}
        store = new if d.original is not None else {}
        call = Call(
            kind="work" if d.kind == "work" else "evaluate",
            work=d.work,
            round=d.round,
            period=d.period,
            number=d.number,
            client=client,
            split=d.split,
            memory_format=d.plan.memory_format,
            state=_number(d.states[position]),
            carry=_number(d.carries[position]),
            settings=settings,
            groups={name: GroupForm(form, coding) for name, (_, form, coding) in groups.items()},
            patches={
                name: [PatchForm(version, form, coding) for version, (_, form, coding) in patches.items()]
                for name, patches in static.patches.items()
            },
            store=store,
            stored=static.stored,
        )
        content = RecordDict({name: record for name, (record, _, _) in groups.items()})
        for name, patches in static.patches.items():
            for version, (record, _, _) in patches.items():
                content[patch_record(name, version)] = record
        content[CALL] = call.to_record()
        if len(tensors):
            content[SETTINGS] = tensors
        if d.rows is not None:
            content[ROWS] = ArrayRecord({"rows": tensor_to_array(torch.from_numpy(d.rows))})
        if store:
            self.stored.setdefault(client, {}).update(store)
        kind = "train" if d.kind == "work" else "evaluate"
        return Message(content, dst_node_id=self.nodes.of[client], message_type=kind, group_id=str(d.round))

    def _replies(self, messages: Mapping[int, Message]) -> dict[int, RecordDict | str]:
        """Send messages by position: position -> reply, or the reason why there is none."""
        answers = self.grid.send_and_receive(list(messages.values()), timeout=self.timeout) if messages else ()
        # an error of the SuperLink (no heartbeat of the node) comes from the SuperLink, and only names the message
        found = {reply.metadata.reply_to_message_id: reply for reply in answers}
        replies: dict[int, RecordDict | str] = {}
        for position, message in messages.items():
            reply = found.get(message.metadata.message_id)
            if reply is not None and not reply.has_error():
                replies[position] = reply.content
                continue
            replies[position] = str(reply.error.reason) if reply else f"no reply within {self.timeout:g} s"
            if (client := self.nodes.forget(message.metadata.dst_node_id)) is not None:
                self.stored.pop(client, None)  # it may come back on another node, without what it has stored
        return replies

    # -- up -------------------------------------------------------------------------------------------------------
    def _receive(self, exchange: ExchangeWorker, at: np.ndarray, content: RecordDict | str) -> None:
        """Decode and fold the reply of the client at a position; raise its error if it failed."""
        if isinstance(content, str):
            way_out = "" if self.drops else "; execution.on_client_error=drop would go on without the client"
            with during(exchange.dispatch.work):
                raise ConnectionError(f"{content}{way_out}")
        if failure := Failure.of(content):
            self.stored.pop(int(exchange.dispatch.cohort[at[0]]), None)
            with during(failure.stage):
                raise RuntimeError(failure.error)
        reply = ClientReply.of(content)
        metrics = numbers(get_metrics(content, METRICS))
        examples = int(metrics.pop("num-examples"))
        if exchange.dispatch.kind == "evaluate":
            exchange.columns.add(at, {f"metric/{name}": np.array([value]) for name, value in metrics.items()})
            exchange.columns.add(at, {"num_examples": np.array([examples])})
            exchange.fold.add(0, int(at[0]), record_to_tree(reply.sums, get_arrays(content, SUMS)))
            return
        assert isinstance(exchange, ClientWork)
        uploads, groups, sizes = exchange.uploads, {}, {}
        received: dict[str, Tree] | None = None
        with during("decode"):
            for name, form in reply.groups.items():
                key = uploads.key(at, name)
                decoded, sizes[name] = read_group(exchange.job.up, get_arrays(content, name), form, key)
                if uploads.delta and received is None:
                    received, _, _ = exchange.downloads.of(int(exchange.dispatch.cohort[at[0]]), {}, UnknownState())
                groups[name] = uploads.incoming(name, decoded, received or {}, stacked=False)
        uploads.server_side(at, Update(groups, examples, metrics, owned=True), sizes, stacked=False, careful=True)
        where = {name: np.array([(0, exchange.dispatch.number, 0)]) for name in reply.wrote}
        exchange.columns.add(at, where)


def _number(location: np.ndarray) -> int | None:
    """The exchange that wrote a client's state: its number is stored as the offset of a location."""
    return int(location[1]) if location[0] >= 0 else None
