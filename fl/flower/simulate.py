"""A ServerApp and its ClientApp in this process, as a run of ours: seeded, counted, in a run directory.

    metrics.jsonl     a row per round: means of the MetricRecords that came back, bytes, seconds
    clients.parquet   the numbers of every reply             ledger.parquet    bytes per round, node, direction and record

A ServerApp is opaque: what a round is, its messages tell. A row ends when their group (Flower's `group_id`) changes or, where they
have none, when a kind of message comes again: train and evaluate share a row. In a row are `train/M` and `evaluate/M` (weighted
by `num-examples` where it is told), `messages/train`, ...; `cohort_size` counts nodes, `dropped` error replies.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import ServerApp
from threadpoolctl import threadpool_limits

from fl.errors import ConfigError
from fl.execution.workers.executor import Executor, Serial
from fl.execution.workers.process import configure_process
from fl.execution.workers.ray import Ray
from fl.flower.grid import LocalGrid
from fl.flower.journal import Journal
from fl.flower.records import RecordSizes
from fl.flower.worker import AppResult, Job, frozen, seeded
from fl.storage import checkpoint
from fl.storage.clients import ClientStates
from fl.storage.run import RunDirectory, create_run_directory, read_metrics
from fl.tensors.random import hash64

try:
    from flwr.supercore.task_identity import TaskIdentity
except ImportError:  # a version whose messages do not ask who sends them
    TaskIdentity = None

Row = dict[str, Any]
Watcher = Callable[[str, Any], None]  # called with ("start", AppRun), ("ready", AppRun), ("round", Row)
WEIGHTS = ("num-examples", "num_examples")  # Flower's name, and that of apps with a client_fn
EXECUTORS = ("serial", "ray")


@dataclass(frozen=True)
class Result:
    """A finished run. What the ServerApp made of it is its own: in `context.state`, or wherever the app put it."""

    metrics: list[Row]
    context: Context
    directory: Path

    @property
    def ledger(self):
        """The ledger, a pyarrow Table."""
        import pyarrow.parquet as pq

        return pq.read_table(self.directory / "ledger.parquet")


@dataclass(frozen=True)
class AppRun:
    """A run of an app, as watchers see it."""

    directory: Path
    headline: str
    round: int  # where it begins
    rounds: int | None = None  # the ServerApp alone knows
    every: int = 1


def simulate(
    server_app: ServerApp,
    client_app: ClientApp,
    num_nodes: int,
    *,
    seed: int = 0,
    out: str | Path | None = None,
    executor: Literal["serial", "ray"] = "serial",
    workers: int | None = None,
    run_config: Mapping[str, Any] | None = None,
    name: str = "flower",
    source: str | None = None,
    journal: bool = False,
    resume: bool = False,
    watch: Watcher = lambda event, value: None,
) -> Result:
    """Run an app over `num_nodes` nodes.

    run_config: what both sides find in `context.run_config`. name: kept in config.yaml, and names the run directory where `out`
    does not; `source` is kept too: the folder of the app. journal: keep every reply (that is what it costs on disk), so that
    the run can go on after it was killed: with the same arguments, its directory as `out`, and `resume`.
    """
    if num_nodes < 1:
        raise ConfigError("num_nodes", f"{num_nodes} is not at least 1")
    if executor not in EXECUTORS:
        raise ConfigError("executor", f"{executor!r} is not one of {list(EXECUTORS)}")
    if resume and not out:
        raise ConfigError("out", "resume goes on with a run: name its directory")
    directory = Path(out) if out else create_run_directory(name, seed)
    run_id, run_config = int(hash64(seed, "run")) >> 1, dict(run_config or {})
    app = {"name": name, "source": source, "nodes": num_nodes, "config": run_config, "journal": journal or resume}
    record = _committed(directory, seed, app) if resume else None
    if not resume and (directory / "metrics.jsonl").exists():
        raise ConfigError("out", f"{directory} holds a run already; name another, or resume it if it has a journal")
    configure_process()
    folder = RunDirectory(directory, record and record["lengths"])
    states = ClientStates(directory / "clients", num_nodes + 1)  # by node id; nobody is 0
    if record:
        states.restore(record["clients"])
    else:
        folder.configure({"seed": seed, "flower": app, "execution": {"executor": executor, "workers": workers}})
        folder.describe({})
    context = Context(run_id=run_id, node_id=0, node_config={}, state=RecordDict(), run_config=dict(run_config))
    kept = Journal(directory / "journal", record["journal"] if record else ()) if app["journal"] else None
    rows = _Rows(folder, states, kept, record["round"] if record else 0, watch)
    team: Executor = Ray(workers or torch.multiprocessing.cpu_count()) if executor == "ray" else Serial()
    run = AppRun(directory, f"{name}, a Flower app, {num_nodes} nodes, in {directory}", rows.round)
    try:
        with threadpool_limits(1), seeded(seed, "server"), _identity(run_id), frozen():
            watch("start", run)
            with seeded():  # what starting workers draws is not the server's
                team.start(Job(client_app, seed, run_id, num_nodes, run_config, directory / "clients"), states)
            watch("ready", run)
            server_app(LocalGrid(team, states, run_id, rows, kept), context)
            rows.end()
    finally:
        team.close()
        if kept:
            kept.close()
        folder.export()
        folder.close()
    return Result(read_metrics(directory), context, directory)


def _committed(directory: Path, seed: int, app: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Where the run in a directory stands; `None` if it did not come to an end of a round. It must be the same run."""
    file = directory / "config.yaml"
    if not file.is_file():
        raise ConfigError("out", f"{directory} holds no run")
    then = yaml.safe_load(file.read_text())
    if "flower" not in then:
        raise ConfigError("out", f"{directory} is no run of a Flower app; fl.resume goes on with it")
    if not then["flower"]["journal"]:
        raise ConfigError("out", f"{directory} has no journal: its run cannot go on. Start a new one, with journal")
    for key, now in {"seed": seed, **app}.items():
        before = then["seed"] if key == "seed" else then["flower"][key]
        if key not in ("name", "source") and before != now:
            raise ConfigError(key, f"{now!r} is not {before!r}, which the run in {directory} has")
    there = (directory / "checkpoints" / "last.json").is_file()
    return checkpoint.load(directory / "checkpoints", "last") if there else None


@contextmanager
def _identity(run_id: int) -> Iterator[None]:
    """Who sends the messages made in this process: Flower asks for it where a Message is constructed."""
    if TaskIdentity is None:
        yield
        return
    names = ("_task_id", "_run_id", "_node_id")
    before = {name: getattr(TaskIdentity, name) for name in names}
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, SUPERLINK_NODE_ID
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, name, value)


class _Rows:
    """Rounds, as the messages tell them; each is committed when the next begins."""

    def __init__(
        self, folder: RunDirectory, states: ClientStates, journal: Journal | None, round_: int, watch: Watcher
    ):
        self.folder, self.states, self.journal, self.round, self.watch = folder, states, journal, round_, watch
        self.group: str | None = None  # of the row at hand; None: no row yet

    def begins(self, messages: Sequence[Message]) -> None:
        group, kinds = messages[0].metadata.group_id, {message.metadata.message_type for message in messages}
        if self.group is not None and (group != self.group or (not group and kinds & self.means.keys())):
            self.end()
        if self.group is None:
            self.group, self.exchange, self.nodes, self.dropped = group, 0, set(), 0
            self.means: dict[str, Means] = defaultdict(Means)
            self.start = time.perf_counter()

    def ended(self, messages: Sequence[Message], sent: Sequence[RecordSizes], outcomes: Sequence[AppResult]) -> None:
        nodes = [message.metadata.dst_node_id for message in messages]
        numbers: dict[str, list[tuple[int, float, dict[str, float]]]] = defaultdict(list)
        for node, message, outcome in zip(nodes, messages, outcomes):
            weight, found = _numbers(outcome.reply)
            kind = message.metadata.message_type
            self.means[kind].add(weight, found)
            self.dropped += outcome.reply.has_error()
            if found:
                numbers[kind].append((node, weight, found))
        self.nodes.update(nodes)
        for kind, rows in numbers.items():
            clients, weights, metrics = zip(*rows)
            names = dict.fromkeys(name for found in metrics for name in found)
            columns = {name: np.array([found.get(name, np.nan) for found in metrics]) for name in names}
            self.folder.clients.add(self.round, kind, np.array(clients), np.array(weights).astype(np.int64), columns)
        self._count("down", nodes, sent)
        self._count("up", nodes, [outcome.sizes for outcome in outcomes])
        self.exchange += 1

    def _count(self, direction: str, nodes: Sequence[int], sizes: Sequence[RecordSizes]) -> None:
        columns: dict[str, list[tuple[int, ...]]] = defaultdict(list)
        for node, of_message in zip(nodes, sizes):
            for name, *figures in of_message:
                columns[name].append((node, *figures))
        for name, found in columns.items():
            self.folder.ledger.record(self.round, self.exchange, direction, name, *np.array(found).T)

    def end(self) -> None:
        """Commit the row at hand."""
        if self.group is None:
            return
        row: Row = {"round": self.round, "cohort_size": len(self.nodes), "dropped": self.dropped}
        for kind, found in self.means.items():
            row[f"messages/{kind}"] = found.count
            row |= {f"{kind}/{name}": value for name, value in found.values().items()}
        row |= self.folder.ledger.totals(self.round) | {"wall_seconds": time.perf_counter() - self.start}
        record = {"round": self.round + 1, "clients": self.states.commit()}
        if self.journal is not None:
            record["journal"], row["journal_bytes"] = self.journal.commit(), self.journal.nbytes
        self.folder.commit(self.round, [row], record, best=False)
        self.states.sweep()
        self.round, self.group = self.round + 1, None
        self.watch("round", row)


def _numbers(reply: Message) -> tuple[float, dict[str, float]]:
    """(weight, numbers by name) in a reply's MetricRecords; the weight is 1 where none is told."""
    if not reply.has_content():
        return 1.0, {}
    records = (record for record in reply.content.values() if isinstance(record, MetricRecord))
    numbers = {key: value for record in records for key, value in record.items() if not isinstance(value, list)}
    weight = next((numbers.pop(key) for key in WEIGHTS if key in numbers), 1)
    return weight, numbers


class Means:
    """Weighted means of numbers by name, each over the replies that hold it."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: dict[str, tuple[float, float]] = {}

    def add(self, weight: float, numbers: Mapping[str, float]) -> None:
        self.count += 1
        for key, value in numbers.items():
            total, weights = self.sums.get(key, (0.0, 0.0))
            self.sums[key] = total + weight * value, weights + weight

    def values(self) -> dict[str, float]:
        return {key: total / weights for key, (total, weights) in self.sums.items() if weights}
