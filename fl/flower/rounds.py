"""Rounds of a Flower app: group its messages into rounds, and commit a row of metrics for each.

A ServerApp does not say what a round is, but its messages do. A round ends when Flower's `group_id` changes. Messages
without a group end the round when a message type comes again; train and evaluate share a round.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Message, MetricRecord

from fl.flower.journal import Journal
from fl.flower.records import RecordSizes, numbers
from fl.flower.worker import AppResult
from fl.storage.clients import ClientStates
from fl.storage.run import RunDirectory
from fl.tracking.callback import Callbacks

Row = dict[str, Any]
WEIGHTS = ("num-examples", "num_examples")  # Flower's name, and the name in apps with a client_fn


class RoundRecorder:
    """Writes one row per round to a run directory. A round is committed when the next one starts.

    Args:
        folder: The run directory.
        states: States of the nodes.
        journal: Journal of replies, or None.
        round_: Number of the first round.
        callbacks: They see each round once it is committed.
    """

    def __init__(
        self, folder: RunDirectory, states: ClientStates, journal: Journal | None, round_: int, callbacks: Callbacks
    ) -> None:
        self.folder, self.states, self.journal, self.round = folder, states, journal, round_
        self.callbacks = callbacks
        self.first_error: str | None = None  # its node, message type and round, and its place in the app
        self._start(None)

    def _start(self, group: str | None) -> None:
        self.group = group  # None until the first message of a round
        self.exchange = 0
        self.errors: dict[str, int] = defaultdict(int)  # numbers of replies, by message type
        self.late: dict[str, int] = defaultdict(int)
        self.nodes: set[int] = set()
        self.means: dict[str, WeightedMeans] = defaultdict(WeightedMeans)
        self.start = time.perf_counter()

    def batch_started(self, messages: Sequence[Message]) -> None:
        """Find out whether these messages start a new round."""
        group, kinds = messages[0].metadata.group_id, {message.metadata.message_type for message in messages}
        if self.group is not None and (group != self.group or (not group and kinds & self.means.keys())):
            self.end()
        if self.group is None:
            self._start(group)

    def batch_finished(
        self, messages: Sequence[Message], sent: Sequence[RecordSizes], results: Sequence[AppResult]
    ) -> None:
        """Record metrics and bytes of a batch."""
        nodes = [message.metadata.dst_node_id for message in messages]
        replies: dict[str, list[tuple[int, float, dict[str, float]]]] = defaultdict(list)
        for node, message, result in zip(nodes, messages, results):
            weight, metrics = _metrics(result)
            kind = message.metadata.message_type
            self.means[kind].add(weight, metrics)
            if result.late:
                self.late[kind] += 1
            elif result.reply.has_error():
                self.errors[kind] += 1
                what = result.trouble.summary if result.trouble else result.reply.error.reason
                self.first_error = self.first_error or f"node {node}, {kind!r}, round {self.round}\n{what}"
            if metrics:
                replies[kind].append((node, weight, metrics))
        self.nodes.update(nodes)
        for kind, rows in replies.items():
            clients, weights, found = zip(*rows)
            names = dict.fromkeys(name for metrics in found for name in metrics)
            columns = {name: np.array([metrics.get(name, np.nan) for metrics in found]) for name in names}
            self.folder.clients.add(self.round, kind, np.array(clients), np.array(weights).astype(np.int64), columns)
        self._count("down", nodes, sent)
        self._count("up", nodes, [result.sizes for result in results])
        self.exchange += 1

    def _count(self, direction: str, nodes: Sequence[int], sizes: Sequence[RecordSizes]) -> None:
        columns: dict[str, list[tuple[int, int, int, int]]] = defaultdict(list)
        for node, of_message in zip(nodes, sizes):
            for name, payload, encoded, wire in of_message:
                columns[name].append((node, payload, encoded, wire))
        for name, found in columns.items():
            clients, payload_, encoded_, wire_ = np.array(found).T
            self.folder.ledger.record(self.round, self.exchange, direction, name, clients, payload_, encoded_, wire_)

    def end(self) -> None:
        """Commit the present round, if there is one."""
        if self.group is None:
            return
        dropped = sum(self.errors.values()) + sum(self.late.values())
        row: Row = {"round": self.round, "cohort_size": len(self.nodes), "dropped": dropped}
        for kind, means in self.means.items():
            row[f"messages/{kind}"] = means.count
            for name, numbers_of in (("errors", self.errors), ("late", self.late)):
                row |= {f"{name}/{kind}": numbers_of[kind]} if numbers_of.get(kind) else {}
            row |= {f"{kind}/{name}": value for name, value in means.values().items()}
        row |= self.folder.ledger.totals(self.round) | {"wall_seconds": time.perf_counter() - self.start}
        record: dict[str, Any] = {"round": self.round + 1}
        if self.journal is not None:
            record["journal"], row["journal_bytes"] = self.journal.commit(), self.journal.nbytes
        self.folder.commit([row], record, self.states, best=False)
        self.round, self.group = self.round + 1, None
        self.callbacks.round(row)


def _metrics(result: AppResult) -> tuple[float, dict[str, float]]:
    """(weight, numbers by name) of a reply's MetricRecords; the weight is 1 if the reply has none or is late."""
    if not result.reply.has_content() or result.late:
        return 1.0, {}
    found: dict[str, float] = {}
    for record in result.reply.content.values():
        if isinstance(record, MetricRecord):
            found |= numbers(record)
    weight = next((found.pop(key) for key in WEIGHTS if key in found), 1)
    return weight, found


class WeightedMeans:
    """Weighted means of numbers by name, each over the replies that have the number."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: dict[str, tuple[float, float]] = {}

    def add(self, weight: float, values: Mapping[str, float]) -> None:
        """Add the numbers of one reply."""
        self.count += 1
        for key, value in values.items():
            total, weights = self.sums.get(key, (0.0, 0.0))
            self.sums[key] = total + weight * value, weights + weight

    def values(self) -> dict[str, float]:
        """Return the means, without names whose weights are all zero."""
        return {key: total / weights for key, (total, weights) in self.sums.items() if weights}
