"""Asynchronous servers: exchanges whose updates come from clients that began at different times.

clock's next step -> who set out: broadcast, ledger -> ... -> who arrived: their updates, reduced -> the strategy's step

A round is a step of the server. Who arrives when does not depend on what anybody learns: sizes are known beforehand, so the
clock (fl/system/events.py) goes ahead alone, and clients train when the first of them is needed, all that are under way at
once on all workers. Those who set out with the same version of the model train together, whenever that is: worker count,
commits and resumption change no bits. What has been trained and not yet used is part of the commit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl.communication.wire import wire_bytes
from fl.errors import ConfigError
from fl.execution.training.plan import Plan
from fl.execution.worker import DispatchGroup, DispatchResult, ExchangeDispatch
from fl.method.messages import Broadcast
from fl.method.reduction import Fold, Meta, Product, Reduction, Stack
from fl.method.strategy import Exchange, ExchangeResult
from fl.simulation.exchange import ExchangeRunner, by_group, expected_upload_bytes, sent_bytes, weighted_mean
from fl.system.clock import Clock
from fl.system.clock_state import ClockState, ServerStep
from fl.tensors.trees import Tree


@dataclass(frozen=True)
class Group:
    """Who sets out with the same version, each client once: they train as one dispatch."""

    work: str
    number: int  # of the dispatch
    version: int
    period: int
    broadcast: Broadcast
    plan: Plan
    clients: np.ndarray  # (n,) in the order in which they train
    starts: np.ndarray  # (n,) the clock's dispatch numbers


@dataclass(frozen=True)
class ClientResult:
    """What a client has made of its work; `groups` is empty if it failed."""

    groups: Mapping[str, Tree]
    num_examples: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    sizes: Mapping[str, list[int]] = field(default_factory=dict)  # group -> payload bytes, encoded bytes, arrays


class AsynchronousRunner(ExchangeRunner):
    """One exchange in a round, of all clients that the strategy has; the clock says who takes part."""

    def __init__(self, *parts: Any):
        super().__init__(*parts)
        if self.executor.remote:
            raise ConfigError("server", "an asynchronous server runs in virtual time, which a deployment has not")
        self.clock: Clock | None = None
        self.state: ClockState | None = None
        self.act: ServerStep | None = None  # the step at hand, until it is used
        self.nbytes: tuple[int, int] | None = None  # down and up, of a client
        self.waiting: list[Group] = []  # have set out, and not trained
        self.brought: dict[int, ClientResult] = {}  # trained and not used, by the clock's dispatch number

    # -- lasting --------------------------------------------------------------------------------------------------
    def record(self) -> dict[str, Any]:
        self._train()
        brought = {str(start): vars(what) for start, what in self.brought.items()}
        return {**super().record(), "clock": self.state, "nbytes": self.nbytes, "brought": brought}

    def restore(self, record: Mapping[str, Any]) -> None:
        super().restore(record)
        self.state, self.nbytes = record["clock"], record["nbytes"]
        self.brought = {int(start): ClientResult(**what) for start, what in record["brought"].items()}

    # -- who takes part -------------------------------------------------------------------------------------------
    def sample(self, state: Any, request: Any, round_: int, sizes: np.ndarray) -> tuple[Any, np.ndarray, float]:
        if self.clock is None:
            self._wind(request(), round_, sizes)
        self.state, self.act = self.clock.step(self.state)
        return state, np.unique([arrival.client for arrival in self.act.arrivals]), self.now

    def _wind(self, request: Any, round_: int, sizes: np.ndarray) -> None:
        """Make the clock, of what everybody's trip takes."""
        config, world = self.run_setup.config, self.world
        if not isinstance(request, Exchange):
            raise ConfigError(
                "server",
                f"an asynchronous server takes strategies that begin a round with an exchange, not {request!r}",
            )
        if self.nbytes is None:
            self.nbytes = (
                sent_bytes(config.down, Broadcast.of(request.broadcast)),
                expected_upload_bytes(config, request),
            )
        clients = np.arange(self.run_setup.trainable)
        _, samples = config.client.workload(sizes, round_, config.rounds, request.work)
        times = replace(world, jitter=0.0).times(
            clients, samples, *self.nbytes, flops_per_sample=self.run_setup.flops_per_sample
        )
        try:
            self.clock = Clock(config.server, world, times)
        except ValueError as error:
            raise ConfigError("server", str(error)) from error
        self.state = self.clock.begin() if self.state is None else self.state

    # -- an exchange ----------------------------------------------------------------------------------------------
    def run(self, exchange: Exchange) -> ExchangeResult:
        act, self.act = self.act, None
        if act is None or exchange.cohort is not None or exchange.skeleton is not None or exchange.pin:
            raise ValueError("an asynchronous server takes strategies of one exchange a round, with all clients alike")
        self._set_out(exchange, act)
        arrivals = sorted(act.arrivals, key=lambda a: (-self.sizes[a.client], a.client, a.dispatch))
        if any(a.dispatch not in self.brought for a in (*arrivals, *act.discarded)):
            self._train()
        outcome = self._used(exchange, act, arrivals)
        seconds, self.now = act.time - self.now, act.time
        staleness = np.array([a.staleness for a in arrivals])
        self.tally.simulate(
            {
                "simulated_seconds": seconds,
                "staleness": float(staleness.mean()),
                "max_staleness": int(staleness.max()),
                "discarded": len(act.discarded),
                "clients_dropped": len(act.failed),
            }
        )
        self.index += 1
        return outcome

    def _set_out(self, exchange: Exchange, act: ServerStep) -> None:
        """Send the present version to those who set out since the last step."""
        starts = sorted(act.starts, key=lambda s: (-self.sizes[s.client], s.client, s.dispatch))
        clients = np.array([start.client for start in starts], np.int64)
        broadcast, _, _ = self._sent(exchange.work, Broadcast.of(exchange.broadcast), clients)
        if not broadcast.uniform:
            raise ValueError("an asynchronous server takes strategies that send the same to all clients")
        failing = {int(row[0]) for row in self.state.in_flight if row[4]} | set(act.failed)
        again: dict[int, int] = defaultdict(int)  # a quick client may set out twice with one version
        groups: dict[int, list] = defaultdict(list)
        for start in starts:
            if start.dispatch not in failing:
                groups[again[start.client]].append(start)
            again[start.client] += 1
        for time, members in groups.items():
            plan = self._plan(exchange, broadcast) if len(members) > 1 else Plan("loop", 1, "alone with its version")
            clients, numbers = (np.array(column, np.int64) for column in list(zip(*members))[:2])
            number = self._number(time)
            self.waiting.append(
                Group(exchange.work, number, self.round, self.period, broadcast, plan, clients, numbers)
            )

    # -- training -------------------------------------------------------------------------------------------------
    def _train(self) -> None:
        """All who have set out; a client that did so twice goes on from what it kept the first time."""
        waves: list[list[Group]] = []
        latest: dict[int, int] = defaultdict(int)  # the wave after that of each client
        for group in self.waiting:
            wave = max(latest[int(client)] for client in group.clients)
            latest |= dict.fromkeys(group.clients.tolist(), wave + 1)
            waves += [[]] if wave == len(waves) else []
            waves[wave].append(group)
        for wave in waves:
            several = DispatchGroup(tuple(self._of(group) for group in wave))
            for group, done in zip(wave, self.executor.run(several)):
                self.tally.worked(done)
                self._brought(group, done)
        self.waiting = []

    def _of(self, group: Group) -> ExchangeDispatch:
        return self._dispatch(
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

    def _brought(self, group: Group, done: DispatchResult) -> None:
        n, columns = len(group.clients), done.columns
        dropped = columns.column("dropped", n, False)
        self._stage(group.clients, columns, dropped)
        groups = {meta.client: value for value, meta in done.value or ()}
        examples, metrics = columns.column("num_examples", n, 0), columns.metrics(n)
        sizes = {name[3:]: columns.column(name, n, 0) for name in columns.pieces if name.startswith("up/")}
        for i, (client, start) in enumerate(zip(group.clients.tolist(), group.starts.tolist())):
            if dropped[i]:
                self.brought[start] = ClientResult({})
                continue
            numbers = {name: float(values[i]) for name, values in metrics.items()}
            took = {name: [int(x) for x in rows[i]] for name, rows in sizes.items()}
            self.brought[start] = ClientResult(groups[client], int(examples[i]), numbers, took)

    # -- up -------------------------------------------------------------------------------------------------------
    def _used(self, exchange: Exchange, act: ServerStep, arrivals: Sequence[Any]) -> ExchangeResult:
        """Reduce what arrived, and book it."""
        reduction = Product(by_group(exchange.reduction))
        came = [(arrival, self.brought.pop(arrival.dispatch)) for arrival in arrivals]
        late = [(arrival, self.brought.pop(arrival.dispatch)) for arrival in act.discarded]
        self._count([(arrival.client, what) for arrival, what in (*came, *late)])
        fold, good = Fold(reduction, len(came)), []
        for position, (arrival, what) in enumerate(came):
            acc = None
            if what.groups:
                meta = Meta(arrival.client, what.num_examples, arrival.staleness, owned=True, spill=_Held)
                acc = reduction.lift(what.groups, meta)
                good.append((arrival, what))
            fold.add(0, position, acc)
        value = fold.finish()
        value = value["model"] if value and isinstance(exchange.reduction, Reduction) else value
        clients = np.array([arrival.client for arrival, _ in good], np.int64)
        examples = np.array([what.num_examples for _, what in good], np.int64)
        names = dict.fromkeys(name for _, what in good for name in what.metrics)
        metrics = {name: np.array([what.metrics.get(name, np.nan) for _, what in good]) for name in names}
        pooled = {name: weighted_mean(values, examples) for name, values in metrics.items()}
        columns = {**metrics, "staleness": np.array([float(arrival.staleness) for arrival, _ in good])}
        self.folder.clients.add(self.booked, "train", clients, examples, columns)
        self.tally.add(pooled, float(examples.sum()))
        self.tally.dropped += len(arrivals) - len(good)
        return ExchangeResult(value, clients, examples, pooled, act.tier)

    def _count(self, came: list[tuple[int, ClientResult]]) -> None:
        """The bytes of updates."""
        came.sort(key=lambda pair: pair[0])
        groups = sorted({group for _, what in came for group in what.sizes})
        for group in groups:
            clients = np.array([client for client, what in came if group in what.sizes], np.int64)
            payload, encoded, arrays = np.array([what.sizes[group] for _, what in came if group in what.sizes]).T
            wire = wire_bytes(encoded, arrays, message=group == groups[0])
            self.folder.ledger.record(self.booked, 0, "up", group, clients, payload, encoded, wire)


@dataclass(frozen=True)
class _Held:
    """A vector in memory, where a `Collect` expects one on disk: the server holds these updates anyway."""

    vector: Tensor

    def open(self) -> Tensor:
        return torch.clone(self.vector)
