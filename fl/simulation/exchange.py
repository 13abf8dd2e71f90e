"""An exchange on the driver's side: encode, have the clients work, reduce, keep the books.

    Exchange -> downlink: codec, ledger -> ExchangeDispatch ~~> executor ~~> DispatchResult -> ledger, metrics
             -> ExchangeResult

With a system model (`system:`) virtual time passes. Message sizes are known beforehand, so the server knows before any
training which updates it will sum. Without a deadline or over-selection, seconds follow from measured bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fl.communication.transmit import transmit
from fl.communication.wire import wire_bytes
from fl.execution.columns import Columns
from fl.execution.dispatch import DispatchResult, ExchangeDispatch
from fl.execution.global_draws import has_users_code
from fl.execution.training.plan import Plan
from fl.execution.workers.executor import Executor
from fl.method.messages import Broadcast
from fl.method.reduction import Product
from fl.method.requests import Exchange, ExchangeResult, Transfer
from fl.simulation.answers import answers_of, result_for
from fl.simulation.attacked_exchanges import AttackedExchanges
from fl.simulation.downlink import Downlink, Place
from fl.simulation.expected_bytes import encoded_size
from fl.simulation.observed import Observed
from fl.simulation.optimiser_average import OptimiserAverage
from fl.simulation.private_rounds import private_exchanges
from fl.simulation.secure_exchanges import SecureExchange, SecureExchanges, averaged
from fl.simulation.setup import RunSetup
from fl.simulation.stored_states import StoredStates
from fl.simulation.totals import RoundTotals
from fl.simulation.virtual_time import VirtualTime
from fl.storage.clients import ClientStates
from fl.storage.records import NO_RECORD
from fl.storage.run import RunDirectory
from fl.system.round_trip import RoundTrip
from fl.tensors.random import hash64
from fl.tensors.trees import Tree
from fl.tracking.spans import span

EMPTY_COHORT = np.empty(0, np.int64)  # for exchanges outside any round
EVALUATIONS = 1 << 15  # first number of a round's evaluations
# What a client costs beside its samples, in samples: its copy of the model, and reading and writing its state. Measured
# with a perceptron of 210,000 parameters: 11 microseconds per sample, 0.1 ms per client, 0.8 ms per state and direction
COST_OF_A_CLIENT, COST_OF_A_STATE = 8.0, 64.0


class ExchangeRunner:
    """Carries out the exchanges of a run.

    The downlink's memory and virtual time last from round to round (`record`); the rest belongs to one round (`begin`).
    Dispatches are numbered by round and by their place in it. Evaluations have numbers of their own, so that neither
    an evaluation nor a further exchange changes the random numbers of later clients.
    """

    def __init__(self, run_setup: RunSetup, executor: Executor, states: ClientStates, folder: RunDirectory):
        self.run_setup, self.executor, self.states, self.folder = run_setup, executor, states, folder
        self.downlink = Downlink(run_setup, folder.ledger)
        self.time = VirtualTime(run_setup)
        self.users_strategy = has_users_code(run_setup.config.strategy)
        self.stored_states = StoredStates(run_setup, states, executor.remote)
        self.observed = Observed() if run_setup.config.cohort.observes else None
        self.optimisers = OptimiserAverage(run_setup.config)
        self.attacked = AttackedExchanges.of(run_setup, executor, folder.path / "scratch")
        self.private = private_exchanges(run_setup)
        self.secure = SecureExchanges.of(run_setup)
        self.begin(0, 0, EMPTY_COHORT)

    def begin(self, round_: int, ledger_round: int, cohort: np.ndarray) -> None:
        """Begin a round of `cohort`. Bytes and clients' metrics are booked under `ledger_round`."""
        self.round, self.ledger_round = round_, ledger_round
        self.index, self.evaluations, self.totals = 0, 0, RoundTotals()
        self.carries: dict[int, tuple[int, ...]] = {}  # client -> where its carry to the next exchange lies
        self.period = self.run_setup.period_at(round_)
        self.sizes = self.run_setup.sizes(self.period)
        if self.private is not None:
            self.private.begin(round_, in_round=0 <= ledger_round < self.run_setup.config.rounds)
        self.set_cohort(cohort)

    def set_cohort(self, cohort: np.ndarray) -> None:
        """Set the clients of the round's exchanges, ids ascending, (n,)."""
        self.cohort = cohort
        if self.observed is not None:
            self.observed.begin(cohort)

    @property
    def place(self) -> Place:
        """The place of the exchange at hand."""
        return Place(self.ledger_round, self.index)

    def record(self) -> dict[str, Any]:
        """Return what a resumed run needs. Call it when everything else of the round is done."""
        private = None if self.private is None else self.private.record()
        lasting = {"now": self.time.now, "optimiser": self.optimisers.memory, "private": private}
        return {**self.downlink.record(), **lasting}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Take over a `record`."""
        self.downlink.restore(record)
        self.time.now, self.optimisers.memory = record["now"], record["optimiser"]
        if self.private is not None and record["private"] is not None:
            self.private.restore(record["private"])

    def sample(
        self, state: Tree, first_request: Callable[[], Any], round_: int, sizes: np.ndarray
    ) -> tuple[Tree, np.ndarray, float]:
        """Draw the cohort of a round: (sampler's state, cohort, virtual time at which it starts).

        `first_request` returns what the strategy will yield first. An asynchronous server needs it for its clock.
        """
        private, seed = self.private, self.run_setup.config.seed
        return self.time.sample(state, round_, sizes, seed if private is None else private.sampling_seed(round_))

    def wait(self, until: float) -> None:
        """Advance virtual time without work."""
        self.totals.add_simulated(self.time.wait(until))

    def run(self, exchange: Exchange) -> ExchangeResult:
        """Broadcast, train, reduce: carry out one exchange and book its bytes and metrics."""
        asked, exchange = exchange, self.optimisers.extend(exchange)
        cohort = self.largest_first(exchange)
        broadcast = Broadcast.of(exchange.broadcast)
        with span("encode", "broadcast"):
            sent = self.downlink.send(exchange.work, broadcast, cohort, self.place)
        reduction = Product(exchange.reductions) if self.private is None else self.private.reduction(exchange)
        if self.private is not None:
            self.private.asked = cohort
        secure = None if self.secure is None else self.secure.begin(exchange, reduction, cohort, self.place.number)
        trip = (
            None
            if self.time.system is None
            else self.time.plan(
                exchange,
                broadcast,
                cohort,
                round_=self.round,
                number=self.place.number,
                down=sent.nbytes,
                downlink=self.downlink,
                sizes=self.sizes[cohort],
                state_of=self.stored_states.of,
                unlabelled=self.run_setup.periods[self.period].partition.unlabelled[cohort],
                secure=secure,
            )
        )
        participants, limits = (cohort, None) if trip is None else trip.takes()
        dispatch = self.new_dispatch(
            kind="work",
            work=exchange.work,
            cohort=participants,
            broadcast=sent.decoded,
            reduction=reduction if secure is None else secure.join(trip),
            plan=self.plan(exchange, sent.decoded, limits is not None),
            carries=self.carries_of(participants),
            skeleton=exchange.skeleton,
            pin=exchange.pin,
            limits=limits,
            original=sent.encoded if self.executor.remote else None,
        )
        if self.attacked is None:
            result = self.executor.run(dispatch, self.time.ahead.draw)
        else:
            result = self.attacked.run(dispatch, self.totals)
        if secure is not None:
            with span("reduce", "unmasking"):
                result = secure.opened(result, participants)
        with span("server", "books"):
            outcome = self._book(exchange, participants, result, secure)
        if trip is not None:
            self._book_time(self.time.finish(trip, participants, result))
        if secure is not None:
            self.totals.add_simulated({**secure.metrics, **self.time.unmask(secure.unmasking_seconds())})
        if self.optimisers.active:
            outcome = replace(outcome, value=self.optimisers.learn(asked, outcome.value))
        return outcome

    def transfer(self, request: Transfer) -> dict[int, Tree]:
        """Encode messages between servers, book their bytes, and return what arrives by node."""
        config, arrived, last = self.run_setup.config, {}, None
        codec = {"up": config.up, "down": config.down}[request.direction]
        for node, tree in request.trees.items():
            if last is None or tree is not last:
                address = (self.place.number, node, "codec", request.tier, request.direction, request.group)
                (received, sizes), last = transmit(codec, tree, key=hash64(config.seed, *address)), tree
            arrived[node], encoded = received, encoded_size(sizes)
            rows = (np.array([node]), sizes.payload_bytes, encoded, wire_bytes(encoded, sizes.arrays, True))
            self.folder.ledger.record(
                self.ledger_round, self.index, request.direction, request.group, *rows, request.tier
            )
        return arrived

    def dispatch(self, **fields: Any) -> DispatchResult:
        """Have an evaluation run; see `new_dispatch`."""
        result = self.executor.run(self.new_dispatch(**fields))
        self.totals.add_work(result)
        return result

    def new_dispatch(self, **fields: Any) -> ExchangeDispatch:
        """Number an exchange or evaluation of the round at hand; `fields` are those of `ExchangeDispatch`."""
        cohort = fields["cohort"]
        on_server, works = fields["kind"] == "evaluate_server", fields["kind"] == "work"
        place = self.place if works else self.evaluation_place()
        defaults: dict[str, Any] = {"round": self.round, "number": place.number, "period": self.period}
        if "carries" not in fields:
            defaults["carries"] = _nowhere(len(cohort))
        if on_server:  # there the cohort numbers blocks of rows
            states, cost = _nowhere(len(cohort)), np.ones(len(cohort))
        else:
            states = self.states.locations(cohort)
            cost = self.sizes[cohort] + COST_OF_A_CLIENT + COST_OF_A_STATE * (states[:, 0] >= 0)
        return ExchangeDispatch(
            states=states,
            cost=cost,
            room=self.states.room(cohort) if works else None,
            **(defaults | fields),
        )

    def evaluation_place(self) -> Place:
        """Return the place of the next evaluation of the round."""
        self.evaluations += 1
        return Place(self.ledger_round, EVALUATIONS + self.evaluations - 1)

    def plan(self, exchange: Exchange, broadcast: Broadcast, limited: bool = False) -> Plan:
        """Return the plan for work in `exchange`. `limited`: some clients do part of their work."""
        plan = self.run_setup.plan
        if limited:
            return plan.in_loop("some do part of their work")
        per_client = any(map(self.downlink.per_client, broadcast.shared))
        if exchange.work != "train" or not broadcast.uniform or per_client:
            return plan.in_loop("clients receive different messages, or do not train")
        return plan if exchange.skeleton is None else self.run_setup.plan_for(exchange.skeleton)

    def largest_first(self, exchange: Exchange) -> np.ndarray:
        """Return the cohort, largest clients first: similar sizes then share a chunk, and long work starts early."""
        cohort = self.cohort if exchange.cohort is None else np.unique(np.asarray(exchange.cohort, np.int64))
        return cohort[np.argsort(-self.sizes[cohort], kind="stable")]

    def carries_of(self, cohort: np.ndarray) -> np.ndarray:
        """Return where the carries of the round's earlier exchanges lie, (n, 3)."""
        carries = _nowhere(len(cohort))
        if self.carries and len(cohort):
            carries[:] = [self.carries.get(int(c), NO_RECORD) for c in cohort]
        return carries

    # -- the books ------------------------------------------------------------------------------------------------
    def _book(
        self, exchange: Exchange, cohort: np.ndarray, result: DispatchResult, secure: SecureExchange | None = None
    ) -> ExchangeResult:
        """Enter what clients sent: states, carries, bytes, metrics."""
        self.totals.add_work(result)
        n, order = len(cohort), np.argsort(cohort)
        cohort, columns = cohort[order], result.columns.reordered(order)
        dropped = columns.column("dropped", n, False)
        self.stage_states(cohort, columns, dropped)
        self._book_bytes(Broadcast.of(exchange.broadcast), cohort, columns)
        self.remember_carries(cohort, columns, dropped)
        answers = answers_of(cohort, columns, dropped)
        if "loss" in answers.metrics:
            self.folder.clients.add(self.ledger_round, "train", answers.clients, answers.num_examples, answers.metrics)
        self.totals.add_metrics(answers.pooled, float(answers.num_examples.sum()))
        self.totals.dropped += n - len(answers.clients)
        number = self.place.number
        if secure is not None:
            secure.book(self.folder, self.ledger_round, self.index)
            answers = answers._replace(num_examples=averaged(answers.num_examples))
            if secure.clipped is not None:
                self.totals.after_reduction["secure/clipped"] = secure.clipped
        if self.observed is not None:
            self.observed.add(cohort, ~dropped, columns.column("num_examples", n, 0), columns.metrics(n))
        self.index += 1
        return result_for(self, exchange, number, result.value, answers)

    def remember_carries(self, cohort: np.ndarray, columns: Columns, dropped: np.ndarray) -> None:
        """Remember where the carries of clients lie; `columns` and `dropped`, (n,), are in the order of `cohort`."""
        carries = columns.column("carry", len(cohort), -1) if "carry" in columns.pieces else None
        if carries is not None:
            carries[dropped] = NO_RECORD
            self.carries |= {int(c): tuple(map(int, where)) for c, where in zip(cohort, carries) if where[0] >= 0}

    def stage_states(self, cohort: np.ndarray, columns: Columns, dropped: np.ndarray) -> None:
        """Take over the clients' new states; a dropped client keeps the state it had."""
        states = columns.column("state", len(cohort), -1) if "state" in columns.pieces else None
        if states is not None:
            states[dropped] = NO_RECORD
            self.states.stage(cohort, states)

    def _book_bytes(self, broadcast: Broadcast, cohort: np.ndarray, columns: Columns) -> None:
        """Enter the bytes that the workers counted: updates, and what each client alone received."""
        down_is_open = bool(self.downlink.common_groups(broadcast) or broadcast.static)
        first = {"up": True, "down": not down_is_open}  # whether the next group opens a message
        for name in sorted(columns.pieces):
            direction, _, group = name.partition("/")
            if direction not in first:
                continue
            payload, encoded, arrays = columns.column(name, len(cohort), 0).T
            sent = arrays > 0
            wire = wire_bytes(encoded, arrays, first[direction])
            rows = (cohort, payload, encoded, wire)
            if not sent.all():
                rows = (cohort[sent], payload[sent], encoded[sent], wire[sent])
            self.folder.ledger.record(self.ledger_round, self.index, direction, group, *rows)
            if direction == "down":
                self.folder.ledger.multicast(self.ledger_round, int(encoded.sum()))
            first[direction] = False

    def _book_time(self, trip: RoundTrip) -> None:
        """Enter virtual seconds and client outcomes."""
        self.totals.add_simulated(trip.metrics())
        self.folder.clients.add(self.ledger_round, "system", trip.cohort, trip.samples, trip.columns())
        if self.observed is not None:
            included = trip.timing.included
            self.observed.add_seconds(trip.cohort[included], trip.timing.times.total[included])


def _nowhere(count: int) -> np.ndarray:
    """Return locations of nothing, (count, 3)."""
    where = np.empty((count, 3), np.int64)
    where[:] = NO_RECORD
    return where
