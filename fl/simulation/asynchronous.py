"""Asynchronous servers: exchanges whose updates come from clients that started at different times.

    next step of the clock -> starting clients: broadcast, ledger -> ... -> arriving updates: reduce -> strategy's step

A round is one step of the server. Arrival times do not depend on the training, because message sizes are known
beforehand. So the clock (fl/system/event_loop.py) runs ahead. When the first result is needed, all clients in flight
train at once, on all workers. Clients that start with the same version of the model train together. A client that
is alone with its version trains in the loop, or in the compiled plan. Worker count, commits and resumption change no
bits. Results that are trained and not yet used are part of the commit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl.communication.wire import wire_bytes
from fl.errors import ConfigError
from fl.execution.dispatch import DispatchGroup, DispatchResult, ExchangeDispatch
from fl.execution.training.plan import Plan
from fl.execution.workers.executor import Executor
from fl.method.fold import Fold
from fl.method.messages import Broadcast
from fl.method.reduction import Meta, Product, Stack
from fl.method.requests import Exchange, ExchangeResult
from fl.simulation.agreement import BEGINS_WITH_EXCHANGE, ONE_EXCHANGE, SAME_MESSAGE
from fl.simulation.answers import Answers, result_for
from fl.simulation.downlink import Place
from fl.simulation.exchange import ExchangeRunner
from fl.simulation.expected_bytes import expected_download_bytes, expected_upload_bytes
from fl.simulation.setup import RunSetup
from fl.simulation.totals import weighted_mean
from fl.simulation.workload import workload_of
from fl.storage.clients import ClientStates
from fl.storage.run import RunDirectory
from fl.system.asynchronous import Asynchronous
from fl.system.clock import Clock
from fl.system.clock_state import Arrival, ClockState, ServerStep
from fl.tensors.trees import Tree


@dataclass(frozen=True)
class Group:
    """Clients that start with the same version of the model, each once. They train as one dispatch.

    clients and starts are (n,), in the order of training; starts are the clock's dispatch numbers.
    """

    work: str
    number: int  # of the dispatch
    version: int
    period: int
    broadcast: Broadcast
    plan: Plan
    clients: np.ndarray
    starts: np.ndarray


@dataclass(frozen=True)
class ClientResult:
    """The update of one client; `groups` is empty if the client failed.

    sizes: group -> [payload bytes, encoded bytes, arrays].
    """

    groups: Mapping[str, Tree]
    num_examples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    sizes: Mapping[str, list[int]] = field(default_factory=dict)


class AsynchronousRunner(ExchangeRunner):
    """Carries out one exchange per round, with all clients of the strategy; the clock decides who takes part."""

    def __init__(self, run_setup: RunSetup, executor: Executor, states: ClientStates, folder: RunDirectory):
        super().__init__(run_setup, executor, states, folder)
        if executor.remote:
            raise ConfigError("server", "an asynchronous server needs virtual time, and a deployment has none")
        self.clock: Clock | None = None
        self.clock_state: ClockState | None = None
        self.step: ServerStep | None = None  # the step at hand, until an exchange uses it
        self.nbytes: tuple[int, int] | None = None  # encoded bytes down and up, per client
        self.untrained: list[Group] = []  # in flight, not trained yet
        self.results: dict[int, ClientResult] = {}  # trained, not used yet; by the clock's dispatch number

    # -- record and restore ---------------------------------------------------------------------------------------
    def record(self) -> dict[str, Any]:
        """Train everybody in flight, and return what a resumed run needs."""
        self._train()
        results = {str(start): vars(result) for start, result in self.results.items()}
        return {**super().record(), "clock": self.clock_state, "nbytes": self.nbytes, "results": results}

    def restore(self, record: Mapping[str, Any]) -> None:
        super().restore(record)
        self.clock_state, self.nbytes = record["clock"], record["nbytes"]
        self.results = {int(start): ClientResult(**result) for start, result in record["results"].items()}

    # -- who takes part -------------------------------------------------------------------------------------------
    def sample(
        self, state: Tree, first_request: Callable[[], Any], round_: int, sizes: np.ndarray
    ) -> tuple[Tree, np.ndarray, float]:
        """Take the clock's next step; the cohort is who arrives in it."""
        if self.clock is None:
            self.clock = self._new_clock(first_request(), round_, sizes)
        if self.clock_state is None:
            self.clock_state = self.clock.begin()
        self.clock_state, self.step = self.clock.step(self.clock_state)
        return state, np.unique([arrival.client for arrival in self.step.arrivals]), self.time.now

    def _new_clock(self, request: Any, round_: int, sizes: np.ndarray) -> Clock:
        """Make the clock from the time that each client's round trip takes."""
        config, system = self.run_setup.config, self.run_setup.system
        assert isinstance(config.server, Asynchronous) and system is not None
        if not isinstance(request, Exchange):
            raise ConfigError("server", f"{BEGINS_WITH_EXCHANGE}, not {request!r}")
        if self.nbytes is None:
            down = expected_download_bytes(config.down, Broadcast.of(request.broadcast))
            self.nbytes = (down, expected_upload_bytes(config, request))
        clients = np.arange(self.run_setup.trainable)
        unlabelled = self.run_setup.periods[self.period].partition.unlabelled[clients]
        _, samples = workload_of(config.client, sizes, unlabelled, round_, config.rounds, request.work)
        flops = self.run_setup.flops_per_sample(clients)
        times = replace(system, jitter=0.0).times(clients, samples, *self.nbytes, flops_per_sample=flops)
        try:
            return Clock(config.server, system, times)
        except ValueError as error:
            raise ConfigError("server", str(error)) from error

    # -- an exchange ----------------------------------------------------------------------------------------------
    def run(self, exchange: Exchange) -> ExchangeResult:
        """Send the present version to who starts, and reduce the updates of who arrives."""
        step, self.step = self.step, None
        if step is None or exchange.cohort is not None or exchange.skeleton is not None or exchange.pin:
            raise ValueError(ONE_EXCHANGE)
        self._start(exchange, step)
        arrivals = sorted(step.arrivals, key=lambda a: (-self.sizes[a.client], a.client, a.dispatch))
        if any(a.dispatch not in self.results for a in (*arrivals, *step.discarded)):
            self._train()
        outcome = self._reduce(exchange, step, arrivals)
        seconds, self.time.now = step.time - self.time.now, step.time
        staleness = np.array([a.staleness for a in arrivals])
        self.totals.add_simulated(
            {
                "simulated_seconds": seconds,
                "staleness": float(staleness.mean()),
                "max_staleness": int(staleness.max()),
                "discarded": len(step.discarded),
                "clients_dropped": len(step.failed),
            }
        )
        self.index += 1
        return outcome

    def _start(self, exchange: Exchange, step: ServerStep) -> None:
        """Send the present version to the clients that have started since the last step."""
        starts = sorted(step.starts, key=lambda s: (-self.sizes[s.client], s.client, s.dispatch))
        clients = np.array([start.client for start in starts], np.int64)
        broadcast = self.downlink.send(exchange.work, Broadcast.of(exchange.broadcast), clients, self.place).decoded
        if not broadcast.uniform:
            raise ValueError(SAME_MESSAGE)
        assert self.clock_state is not None  # `sample` made it
        failing = {int(row[0]) for row in self.clock_state.in_flight if row[4]} | set(step.failed)
        repeats: dict[int, int] = defaultdict(int)  # a quick client may start twice with one version
        groups: dict[int, list] = defaultdict(list)
        for start in starts:
            if start.dispatch not in failing:
                groups[repeats[start.client]].append(start)
            repeats[start.client] += 1
        for repeat, members in groups.items():
            plan = self.plan(exchange, broadcast)
            if len(members) == 1 and plan.kind != "compiled":
                plan = plan.in_loop("alone with its version")
            clients, numbers = (np.array(column, np.int64) for column in list(zip(*members))[:2])
            number = Place(self.ledger_round, repeat).number
            group = Group(exchange.work, number, self.round, self.period, broadcast, plan, clients, numbers)
            self.untrained.append(group)

    # -- training -------------------------------------------------------------------------------------------------
    def _train(self) -> None:
        """Train all clients in flight. A client that started twice continues from the state of its first time."""
        waves: list[list[Group]] = []
        next_wave: dict[int, int] = defaultdict(int)  # of each client
        for group in self.untrained:
            wave = max(next_wave[int(client)] for client in group.clients)
            next_wave |= dict.fromkeys(group.clients.tolist(), wave + 1)
            waves += [[]] if wave == len(waves) else []
            waves[wave].append(group)
        for groups in waves:
            dispatches = DispatchGroup(tuple(self._dispatch_of(group) for group in groups))
            for group, result in zip(groups, self.executor.run(dispatches)):
                self.totals.add_work(result)
                self._keep_results(group, result)
        self.untrained = []

    def _dispatch_of(self, group: Group) -> ExchangeDispatch:
        return self.new_dispatch(
            kind="work",
            work=group.work,
            round=group.version,
            number=group.number,
            period=group.period,
            cohort=group.clients,
            broadcast=group.broadcast,
            reduction=Stack(),
            plan=group.plan,
        )

    def _keep_results(self, group: Group, result: DispatchResult) -> None:
        n, columns = len(group.clients), result.columns
        dropped = columns.column("dropped", n, False)
        self.stage_states(group.clients, columns, dropped)
        groups = {meta.client: value for value, meta in result.value or ()}
        examples, metrics = columns.column("num_examples", n, 0), columns.metrics(n)
        sizes = {name[3:]: columns.column(name, n, 0) for name in columns.pieces if name.startswith("up/")}
        for i, (client, start) in enumerate(zip(group.clients.tolist(), group.starts.tolist())):
            if dropped[i]:
                self.results[start] = ClientResult({})
                continue
            numbers = {name: float(values[i]) for name, values in metrics.items()}
            took = {name: [int(x) for x in rows[i]] for name, rows in sizes.items()}
            self.results[start] = ClientResult(groups[client], int(examples[i]), numbers, took)

    # -- up -------------------------------------------------------------------------------------------------------
    def _reduce(self, exchange: Exchange, step: ServerStep, arrivals: Sequence[Arrival]) -> ExchangeResult:
        """Reduce the updates that arrived, and book them."""
        reduction = Product(exchange.reductions)
        arrived = [(arrival, self.results.pop(arrival.dispatch)) for arrival in arrivals]
        discarded = [(arrival, self.results.pop(arrival.dispatch)) for arrival in step.discarded]
        self._book_uploads([(arrival.client, result) for arrival, result in (*arrived, *discarded)])
        fold, good = Fold(reduction, len(arrived)), []
        for position, (arrival, result) in enumerate(arrived):
            acc = None
            if result.groups:
                meta = Meta(arrival.client, result.num_examples, arrival.staleness, owned=True, spill=_InMemory)
                acc = reduction.lift(result.groups, meta)
                good.append((arrival, result))
            fold.add(0, position, acc)
        clients = np.array([arrival.client for arrival, _ in good], np.int64)
        examples = np.array([result.num_examples for _, result in good], np.int64)
        names = dict.fromkeys(name for _, result in good for name in result.metrics)
        metrics = {name: np.array([result.metrics.get(name, np.nan) for _, result in good]) for name in names}
        pooled = {name: weighted_mean(values, examples) for name, values in metrics.items()}
        columns = {**metrics, "staleness": np.array([float(arrival.staleness) for arrival, _ in good])}
        self.folder.clients.add(self.ledger_round, "train", clients, examples, columns)
        self.totals.add_metrics(pooled, float(examples.sum()))
        self.totals.dropped += len(arrivals) - len(good)
        answers = Answers(clients, examples, pooled, metrics)
        return result_for(self, exchange, self.place.number, fold.finish(), answers, step.tier)

    def _book_uploads(self, arrived: list[tuple[int, ClientResult]]) -> None:
        """Enter the bytes of updates into the ledger."""
        arrived.sort(key=lambda pair: pair[0])
        groups = sorted({group for _, result in arrived for group in result.sizes})
        for group in groups:
            clients = np.array([client for client, result in arrived if group in result.sizes], np.int64)
            sizes = np.array([result.sizes[group] for _, result in arrived if group in result.sizes])
            payload, encoded, arrays = sizes.T
            wire = wire_bytes(encoded, arrays, message=group == groups[0])
            self.folder.ledger.record(self.ledger_round, 0, "up", group, clients, payload, encoded, wire)


@dataclass(frozen=True)
class _InMemory:
    """A vector in memory where `Collect` expects one on disk: the server holds these updates anyway."""

    vector: Tensor

    def open(self) -> Tensor:
        return torch.clone(self.vector)
