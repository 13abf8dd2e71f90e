"""An exchange, driver's side: the broadcast is encoded and counted, workers do the rest, and what came up is booked.

Exchange -> order the cohort -> encode, ledger -> Dispatch ~~> executor ~~> Done -> states, ledger, metrics -> Outcome

In a system model (`system:`) virtual time passes: who is in the sum is decided before anybody trains, by sizes known
beforehand; where nobody waits for a deadline or for the first to come, seconds are those of the bytes that were measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fl.communication.codec import Codec, Sizes, down_key, find_wrapper, forecast, transmit
from fl.communication.codecs.delta import Delta
from fl.communication.codecs.error_feedback import ErrorFeedback, Residuals, compression_error
from fl.communication.wire import wire_bytes
from fl.config.config import Config
from fl.errors import ConfigError
from fl.execution.training.plan import Plan
from fl.execution.worker import Columns, DispatchResult, ExchangeDispatch
from fl.execution.workers.executor import Executor
from fl.method.messages import Broadcast
from fl.method.reduction import Product, Reduction
from fl.method.strategy import Exchange, ExchangeResult, Transfer
from fl.simulation.setup import RunSetup
from fl.storage.clients import ClientStates
from fl.storage.run import RunDirectory
from fl.storage.segments import NOWHERE
from fl.system.round_trip import RoundTrip
from fl.tensors.random import hash64
from fl.tracking.profile import span

Row = dict[str, Any]
EVALUATIONS = 1 << 15  # where the numbers of a round's evaluations begin


class ExchangeRunner:
    """Carries out the exchanges of a run. Lasting from round to round: `seen`, `memory` and `now` (`record`); the rest is `begin`'s.

    Dispatches are numbered by round and by their place in it, evaluations apart from work: so that neither an evaluation nor
    a further exchange changes what later clients draw.
    """

    def __init__(self, run_setup: RunSetup, executor: Executor, states: ClientStates, folder: RunDirectory):
        self.run_setup, self.executor, self.states, self.folder = run_setup, executor, states, folder
        self.world = run_setup.world
        self.seen: dict[str, np.ndarray] = {}  # static groups: the version each client last saw, -1 for none
        self.now = 0.0  # virtual time
        self.memory: dict[str, Residuals] = {}  # what the codec lost of shared groups, for error feedback
        self.feedback, self.delta = (find_wrapper(run_setup.config.down, kind) for kind in (ErrorFeedback, Delta))
        self.begin(0, 0, np.empty(0, np.int64))

    def begin(self, round_: int, booked: int, cohort: np.ndarray) -> None:
        """A round of `cohort`; bytes and clients' metrics are booked under `booked`."""
        self.round, self.booked, self.cohort = round_, booked, cohort
        self.index, self.evaluations, self.carries, self.tally = 0, 0, {}, RoundTotals()
        self.stage = self.run_setup.stage_at(round_)
        self.sizes = self.run_setup.sizes(self.stage)

    # -- lasting --------------------------------------------------------------------------------------------------
    def record(self) -> dict[str, Any]:
        """What to go on from; to be asked for when everything else of the round has been done."""
        return {"seen": self.seen, "memory": self.memory, "now": self.now}

    def restore(self, record: Mapping[str, Any]) -> None:
        self.seen, self.memory, self.now = record["seen"], record["memory"], record["now"]

    # -- who takes part -------------------------------------------------------------------------------------------
    def sample(
        self, state: Any, request: Callable[[], Any], round_: int, sizes: np.ndarray
    ) -> tuple[Any, np.ndarray, float]:
        """(sampler's state, cohort, virtual time at which it sets out) of a round: of clients who are there, as soon as there are
        enough. `request`: what the strategy is going to ask for first, of some cohort."""
        sampler, seed = self.run_setup.config.cohort, self.run_setup.config.seed
        if self.world is None or self.world.always or not sampler.among_present:
            return *sampler.sample(state, round_, seed, sizes), self.now
        opens = self.world.opens(sampler.least(len(sizes)), self.now)
        if opens == math.inf:
            raise ValueError(
                f"availability: there are never {sampler.least(len(sizes))} clients at once, after {self.now} s"
            )
        there = self.world.available(opens)
        state, chosen = sampler.sample(state, round_, seed, sizes[there])
        return state, there[chosen], opens

    def wait(self, until: float) -> None:
        """Virtual time goes on without anybody working."""
        if until > self.now:
            self.tally.simulate({name: until - self.now for name in ("simulated_seconds", "simulated_waiting_seconds")})
            self.now = until

    # -- an exchange ----------------------------------------------------------------------------------------------
    def run(self, exchange: Exchange) -> ExchangeResult:
        """Broadcast, client work, reduction: all of one exchange, with its bytes and metrics booked."""
        cohort = self.cohort if exchange.cohort is None else np.unique(np.asarray(exchange.cohort, np.int64))
        cohort = self._ordered(cohort)
        original = Broadcast.of(exchange.broadcast)
        with span("encode", "broadcast"):
            broadcast, original, down = self._sent(exchange.work, original, cohort)
        trip = None if self.world is None else self._trip(exchange, original, cohort, down)
        taken, limits = (cohort, None) if trip is None else trip.takes()
        plan = self._plan(exchange, broadcast)
        if limits is not None:
            plan = Plan("loop", 1, "some do part of their work")
        carries = np.tile(np.array(NOWHERE), (len(taken), 1))
        if self.carries:
            carries[:] = [self.carries.get(int(c), NOWHERE) for c in taken]
        done = self.dispatch(
            kind="work",
            work=exchange.work,
            cohort=taken,
            broadcast=broadcast,
            reduction=Product(by_group(exchange.reduction)),
            plan=plan,
            carries=carries,
            skeleton=exchange.skeleton,
            pin=exchange.pin,
            limits=limits,
            original=original if self.executor.remote else None,
        )
        with span("server", "books"):
            outcome = self._arrived(exchange, taken, done)
        if trip is not None:
            self._passed(trip, taken, done)
        return outcome

    def _ordered(self, cohort: np.ndarray) -> np.ndarray:
        """Like sizes train together, and the long ones begin."""
        return cohort[np.argsort(-self.sizes[cohort], kind="stable")]

    def _plan(self, exchange: Exchange, broadcast: Broadcast) -> Plan:
        if not broadcast.uniform or exchange.work != "train" or any(map(self._difference, broadcast.shared)):
            return Plan("loop", 1, "not alike for all clients")
        return self.run_setup.plan if exchange.skeleton is None else self.run_setup.plan_for(exchange.skeleton)

    def transfer(self, request: Transfer) -> dict[int, Any]:
        """What arrives of messages between servers; their bytes are booked."""
        config, arrived, sent = self.run_setup.config, {}, None
        codec = {"up": config.up, "down": config.down}[request.direction]
        for node, tree in request.trees.items():
            if sent is None or tree is not sent:
                key = hash64(
                    config.seed, self._number(self.index), node, "codec", request.tier, request.direction, request.group
                )
                (received, sizes), sent = transmit(codec, tree, key=key), tree
            arrived[node], encoded = received, _most(sizes.encoded_bytes)
            rows = (np.array([node]), sizes.payload_bytes, encoded, wire_bytes(encoded, sizes.arrays, True))
            self.folder.ledger.record(self.booked, self.index, request.direction, request.group, *rows, request.tier)
        return arrived

    # -- virtual time ---------------------------------------------------------------------------------------------
    def _trip(self, exchange: Exchange, broadcast: Broadcast, cohort: np.ndarray, down: np.ndarray) -> RoundTrip:
        """What the cohort is about to do, and who of it comes in time."""
        run_setup, config = self.run_setup, self.run_setup.config
        for position, client in enumerate(cohort) if not broadcast.uniform else ():
            own = broadcast.own(int(client))
            down[position] += sum(_most(transmit(config.down, tree)[1].encoded_bytes) for tree in own.values())
        for name in filter(self._difference, broadcast.shared):
            down += _most(transmit(config.down, broadcast.shared[name])[1].encoded_bytes)
        about = self.sizes[cohort], self.round, config.rounds, exchange.work
        (steps, samples), extra = config.client.workload(*about), config.client.extra_samples(*about)
        up = expected_upload_bytes(config, exchange) if config.server.chooses else 0
        number, flops = self._number(self.index), run_setup.flops_per_sample
        trip = RoundTrip(config.server, self.world, self.now, number, cohort, steps, samples, down, flops, extra)
        return trip.uploading(np.full(len(cohort), up))

    def _passed(self, trip: RoundTrip, taken: np.ndarray, done: DispatchResult) -> None:
        """Virtual time goes on to the end of the exchange."""
        if not trip.schedule.chooses:
            up = np.zeros(len(trip.cohort))
            place = {int(client): i for i, client in enumerate(trip.cohort)}
            at = [place[int(client)] for client in taken]
            for name in done.columns.pieces:
                if name.startswith("up/"):
                    up[at] += done.columns.column(name, len(taken), 0)[:, 1]
            trip = trip.uploading(up)
        self.now += trip.round.seconds
        self.tally.simulate(trip.metrics())
        self.folder.clients.add(self.booked, "system", trip.cohort, trip.samples, trip.columns())

    # -- down -----------------------------------------------------------------------------------------------------
    def _difference(self, group: str) -> bool:
        """Whether each client is sent its own difference of a shared group; workers then encode it."""
        return self.delta is not None and self.delta.covers(group)

    def _sent(self, work: str, broadcast: Broadcast, cohort: np.ndarray) -> tuple[Broadcast, Broadcast, np.ndarray]:
        """(the broadcast as clients see it, decoded; as it went into the codec; the bytes (n,) that each client got of it). Bytes go
        into the ledger."""
        config, number = self.run_setup.config, self._number(self.index)
        shared, encoded, static, first = {}, {}, {}, True
        down = np.zeros(len(cohort), np.int64)
        for name, tree in broadcast.shared.items():
            shared[name] = encoded[name] = tree
            if name in broadcast.hidden or self._difference(name):
                continue
            if self.feedback:
                encoded[name] = self.feedback.fed(tree, self.memory.get(f"{work}/{name}"))
            shared[name], sizes = transmit(config.down, encoded[name], key=down_key(config.seed, number, name))
            if self.feedback:
                self.memory[f"{work}/{name}"] = compression_error(encoded[name], shared[name])
            self._record_down(name, cohort, sizes, first)
            down += _most(sizes.encoded_bytes)
            first = False
        for name, value in broadcast.static.items():
            key = down_key(config.seed, number, name, version=value.version)
            decoded, sizes = transmit(config.down, value.value, key=key)
            static[name] = replace(value, value=decoded)
            seen = self.seen.setdefault(name, np.full(self.run_setup.population, -1))
            new = seen[cohort] != value.version
            if new.any():
                self._record_down(name, cohort[new], sizes, first)
                down[new] += _most(sizes.encoded_bytes)
                first = False
            seen[cohort] = value.version
        return replace(broadcast, shared=shared, static=static), replace(broadcast, shared=encoded), down

    def _record_down(self, group: str, clients: np.ndarray, sizes: Sizes, message: bool) -> None:
        ledger = self.folder.ledger
        wire = wire_bytes(sizes.encoded_bytes, sizes.arrays, message)
        ledger.record(self.booked, self.index, "down", group, clients, sizes.payload_bytes, sizes.encoded_bytes, wire)
        if len(clients):
            ledger.multicast(self.booked, sizes.encoded_bytes)

    def _number(self, place: int) -> int:
        return self.booked << 16 | place

    def dispatch(self, **fields: Any) -> DispatchResult:
        """Number an exchange or evaluation and have it run."""
        done = self.executor.run(self._dispatch(**fields))
        self.tally.worked(done)
        return done

    def _dispatch(self, **fields: Any) -> ExchangeDispatch:
        cohort = fields["cohort"]
        nowhere = np.tile(np.array(NOWHERE), (len(cohort), 1))
        server = fields["kind"] == "evaluate_server"
        place = self.index
        if fields["kind"] != "work":
            place, self.evaluations = EVALUATIONS + self.evaluations, self.evaluations + 1
        given = {"round": self.round, "number": self._number(place), "stage": self.stage, "carries": nowhere}
        return ExchangeDispatch(
            states=nowhere if server else self.states.locations(cohort),
            cost=np.ones(len(cohort)) if server else self.sizes[cohort] + 1.0,
            **(given | fields),
        )

    # -- up -------------------------------------------------------------------------------------------------------
    def _arrived(self, exchange: Exchange, cohort: np.ndarray, done: DispatchResult) -> ExchangeResult:
        """Book what came up: states, carries, bytes, metrics."""
        n, columns = len(cohort), done.columns.reordered(np.argsort(cohort))
        cohort = np.sort(cohort)
        dropped = columns.column("dropped", n, False)
        self._stage(cohort, columns, dropped)
        carries = columns.column("carry", n, -1)
        if carries.ndim == 2:
            carries[dropped] = NOWHERE
            self.carries |= {int(c): tuple(map(int, where)) for c, where in zip(cohort, carries) if where[0] >= 0}
        broadcast = Broadcast.of(exchange.broadcast)
        common = [name for name in broadcast.shared if name not in broadcast.hidden and not self._difference(name)]
        message = {"up": True, "down": not (common or broadcast.static)}
        for name in sorted(columns.pieces):
            direction, _, group = name.partition("/")
            if direction in message:
                payload, encoded, arrays = columns.column(name, n, 0).T
                sent = arrays > 0
                wire = wire_bytes(encoded, arrays, message[direction])
                self.folder.ledger.record(
                    self.booked, self.index, direction, group, cohort[sent], payload[sent], encoded[sent], wire[sent]
                )
                if direction == "down":  # each client's own
                    self.folder.ledger.multicast(self.booked, int(encoded.sum()))
                message[direction] = False
        examples = columns.column("num_examples", n, 0)
        metrics = columns.metrics(n)
        if "loss" in metrics:
            self.folder.clients.add(
                self.booked,
                "train",
                cohort[~dropped],
                examples[~dropped],
                {name: values[~dropped] for name, values in metrics.items()},
            )
        pooled = {name: weighted_mean(values, examples * ~dropped) for name, values in metrics.items()}
        self.tally.add(pooled, float(examples[~dropped].sum()))
        self.tally.dropped += int(dropped.sum())
        self.index += 1
        value = done.value["model"] if done.value and isinstance(exchange.reduction, Reduction) else done.value
        return ExchangeResult(value, cohort[~dropped], examples[~dropped], pooled)

    def _stage(self, cohort: np.ndarray, columns: Columns, dropped: np.ndarray) -> None:
        """What clients keep; a dropped one keeps what it had."""
        states = columns.column("state", len(cohort), -1)
        if states.ndim == 2:
            states[dropped] = NOWHERE
            self.states.stage(cohort, states)


class RoundTotals:
    """What adds up over the exchanges of a round."""

    def __init__(self):
        self.pooled: dict[str, list[tuple[float, float]]] = {}  # (value, samples) of each exchange
        self.simulated: dict[str, float] = {}
        self.errors: list[str] = []
        self.dropped = self.retried = 0
        self.busy_seconds = self.server_seconds = 0.0

    def add(self, metrics: Row, samples: float) -> None:
        for name, value in metrics.items():
            self.pooled.setdefault(name, []).append((value, samples))

    def worked(self, done: DispatchResult) -> None:
        self.busy_seconds += done.busy_seconds
        self.retried += done.retried
        self.errors += done.errors

    def simulate(self, figures: Mapping[str, float]) -> None:
        """Virtual seconds and what became of clients."""
        for name, value in figures.items():
            self.simulated[name] = self.simulated.get(name, 0) + value

    def summary(self) -> Row:
        row: Row = {}
        for name, pieces in self.pooled.items():  # the only one as it is, to the bit
            row[f"train/{name}"] = pieces[0][0] if len(pieces) == 1 else weighted_mean(*np.array(pieces).T)
        row |= {"dropped": self.dropped, "busy_seconds": self.busy_seconds}
        if self.server_seconds:
            row["server_seconds"] = self.server_seconds
        if self.errors:
            row["errors"] = self.errors
        return row | self.simulated


def expected_upload_bytes(config: Config, exchange: Exchange) -> int:
    """The bytes that a client is going to send: of groups that come up as they went down; else as declared."""
    assert config.system is not None
    if config.system.up_bytes is not None:
        return config.system.up_bytes
    broadcast, total = Broadcast.of(exchange.broadcast), 0
    known = {**broadcast.shared, **{name: static.value for name, static in broadcast.static.items()}}
    for name in by_group(exchange.reduction):
        received = known.get(config.client.delta_reference.get(name, name))
        size = None if received is None else forecast(config.up, received)
        if size is None:
            raise ConfigError(
                "system.up_bytes",
                f"missing: how much clients send of {name!r} is not known before they have trained, and `server` has to know "
                "who comes in time; declare it in bytes",
            )
        total += size
    return total


def sent_bytes(codec: Codec, broadcast: Broadcast) -> int:
    """What of a broadcast goes to a client that has seen nothing yet, without what is its alone."""
    shared = [tree for name, tree in broadcast.shared.items() if name not in broadcast.hidden]
    trees = [*shared, *(static.value for static in broadcast.static.values())]
    return sum(_most(transmit(codec, tree)[1].encoded_bytes) for tree in trees)


def _most(nbytes: int | np.ndarray) -> int:
    """Of one tree, whose size may come as an array of one."""
    return int(np.max(nbytes))


def by_group(reduction: Reduction | Mapping[str, Reduction]) -> dict[str, Reduction]:
    """A bare reduction is that of the group "model"."""
    return {"model": reduction} if isinstance(reduction, Reduction) else dict(reduction)


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
    """NaN if nobody has weight; values without weight do not count, whatever they are."""
    total = weights.sum()
    return float((np.where(weights > 0, values, 0.0) * weights).sum() / total) if total else float("nan")
