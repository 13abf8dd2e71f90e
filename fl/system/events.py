"""Asynchronous servers on the virtual clock.

    clock = Clock(schedule, world, times)       times: of every client of the population, without jitter
    state = clock.begin()
    state, act = clock.step(state)              on to the next step of the server; clock.run(state, acts) takes many at once

A state is a value: going on from one that was stored is going on without a break. Events come in the order of virtual time, ties by dispatch number. After all that happens at a time, each slot that is free takes a
client drawn uniformly among those who are idle and there, by the address (seed, "start", dispatch). A client that drops out, or goes away before it is done,
never arrives and frees its slot at that time; where nobody is there a slot stays free until somebody comes.

    staleness of an arrival = server steps done when it is used - server steps done when it started
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import NamedTuple

import numpy as np

from fl.registry import register
from fl.system.availability import Presence
from fl.system.devices import lognormal_factors
from fl.system.rounds import ServerMode
from fl.system.simulated_system import LEGS, SimulatedSystem, Times
from fl.tensors import random

BLOCK = 1 << 12  # dispatch numbers drawn at once
NEAR = 1 << 7  # clients looked up at once
TRIES = 16  # candidates who may be away, before all who are idle are looked through


class Start(NamedTuple):
    """A client sets out at `time` with the model of `version`."""

    client: int
    dispatch: int
    version: int
    time: float


class Arrival(NamedTuple):
    """What dispatch number `dispatch` brought, `staleness` server steps after the version it started from."""

    client: int
    dispatch: int
    version: int
    staleness: int


class ServerStep(NamedTuple):
    """A step of the server at `time`: from `version` to version + 1 by `arrivals` (of tier `tier`), in the order they came. `starts`:
    who set out since the step before, all with `version`. `discarded`: who arrived too stale; `failed`: dispatch numbers that
    never arrived."""

    time: float
    version: int
    tier: int
    arrivals: Sequence[Arrival]
    starts: Sequence[Start]
    discarded: Sequence[Arrival]
    failed: Sequence[int]


@dataclass(frozen=True)
class State:
    """The clock between two steps: `version` steps done, `dispatched` starts made; `vacant` (T,) slots of each tier to fill.

    Rows of `in_flight` (F, 5) int64: dispatch, tier, client, version, fails; `ends` (F,) float64: when. `arrived` (L, 5): the same of those who
    arrived and wait for their tier's others. staleness (S,): how many arrivals there were of each, the discarded too.
    """

    time: float
    version: int
    dispatched: int
    vacant: np.ndarray
    ends: np.ndarray
    in_flight: np.ndarray
    arrived: np.ndarray
    staleness: np.ndarray
    discarded: int = 0
    failed: int = 0


@dataclass(frozen=True, kw_only=True)
class Asynchronous(ServerMode):
    """What both servers share. max_staleness: arrivals of more are discarded."""

    max_staleness: int | None = None

    def __post_init__(self):
        if self.max_staleness is not None and self.max_staleness < 0:
            raise ValueError(f"max_staleness: {self.max_staleness} is negative")

    def tiers_of(self, seconds: np.ndarray) -> list[np.ndarray]:
        """The ids of each tier's clients, ascending; seconds (N,): what a trip takes."""
        raise NotImplementedError

    def slots(self, sizes: Sequence[int]) -> list[int]:
        """How many clients of each tier are under way at once."""
        raise NotImplementedError

    @property
    def enough(self) -> int | None:
        """How many arrivals make a step; None: when all of a tier's are back."""
        raise NotImplementedError


@register("server", "buffered", "async")
@dataclass(frozen=True, kw_only=True)
class Buffered(Asynchronous):
    """`concurrency` clients under way at all times; the server steps whenever `buffer` of them have arrived.

    buffer=1 is FedAsync: Xie, Koyejo, Gupta 2019, arXiv:1903.03934. More is FedBuff: Nguyen et al. 2022, arXiv:2106.06639. Slots that come
    free at the time of a step are filled after it, from the new version. Neutral: devices that are all alike and
    buffer=concurrency are synchronous rounds.
    """

    concurrency: int
    buffer: int = 1

    def __post_init__(self):
        super().__post_init__()
        for name in ("concurrency", "buffer"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not at least 1")

    def tiers_of(self, seconds):
        return [np.arange(len(seconds))]

    def slots(self, sizes):
        if self.concurrency > sizes[0]:
            raise ValueError(f"concurrency: {self.concurrency} clients of a population of {sizes[0]}")
        return [self.concurrency]

    @property
    def enough(self):
        return self.buffer


@register("server", "tiered")
@dataclass(frozen=True, kw_only=True)
class Tiered(Asynchronous):
    """Clients in `tiers` of equal size, the quickest first; each tier has rounds of `clients` of its own, the tiers do not wait for
    each other. The server steps when a tier's round ends with an arrival.

    FedAT: Chai et al. 2021, arXiv:2010.05958. Tiers are by what a trip takes without jitter, ties by id. A tier that is smaller than
    `clients` has all of its own under way.
    """

    tiers: int
    clients: int

    def __post_init__(self):
        super().__post_init__()
        for name in ("tiers", "clients"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not at least 1")

    def tiers_of(self, seconds):
        return [np.sort(members) for members in np.array_split(np.argsort(seconds, kind="stable"), self.tiers)]

    def slots(self, sizes):
        if not all(sizes):
            raise ValueError(f"tiers: {self.tiers} of a population of {sum(sizes)}")
        return [min(self.clients, size) for size in sizes]

    @property
    def enough(self):
        return None


class Clock:
    """An asynchronous schedule in a world, with the seconds of everybody's trip; a `ValueError` if there are too few clients."""

    def __init__(self, schedule: Asynchronous, world: SimulatedSystem, times: Times):
        self.schedule, self.world = schedule, world
        self.total = times.total
        self.legs = [getattr(times, leg) for leg in LEGS]
        self.members = [world.able[members] for members in schedule.tiers_of(self.total[world.able])]
        self.slots = schedule.slots([len(members) for members in self.members])
        self.place = np.empty(len(self.total), np.int64)  # of each client in its tier
        for members in self.members:
            self.place[members] = np.arange(len(members))
        self.there = None if world.presence.always else _There(world.presence, len(self.total))
        self.draws = _Draws(world)

    def begin(self) -> State:
        """The state at time 0: nobody is under way."""
        rows = np.zeros((0, 5), np.int64)
        return State(0.0, 0, 0, np.array(self.slots, np.int64), np.zeros(0), rows, rows, np.zeros(0, np.int64))

    def step(self, state: State) -> tuple[State, ServerStep]:
        """On to the server's next step."""
        state, acts = self.run(state, 1)
        return state, acts[0]

    def run(self, state: State, acts: int) -> tuple[State, list[ServerStep]]:
        """On by `acts` steps of the server."""
        loop = _Loop(self, state)
        done = [loop.next() for _ in range(acts)]
        return loop.state(), done


class _Loop:
    """A state taken apart into a heap and sorted lists, to go through many events."""

    def __init__(self, clock: Clock, state: State):
        self.clock, self.schedule, self.world = clock, clock.schedule, clock.world
        self.members, self.place, self.slots = clock.members, clock.place, clock.slots
        self.time, self.version, self.dispatched = state.time, state.version, state.dispatched
        self.vacant = state.vacant.tolist()
        self.heap = [(end, *row) for end, row in zip(state.ends.tolist(), state.in_flight.tolist())]
        self.arrived: list[list[list[int]]] = [[] for _ in self.members]
        for row in state.arrived.tolist():
            self.arrived[row[1]].append(row)
        self.busy: list[list[int]] = [[] for _ in self.members]  # places of those under way, ascending
        for row in state.in_flight.tolist():
            self.busy[row[1]].append(int(self.place[row[2]]))
        for busy in self.busy:
            busy.sort()
        heapify(self.heap)
        self.counts = state.staleness.tolist()
        self.discarded, self.failed = state.discarded, state.failed

    def state(self) -> State:
        rows = sorted(self.heap)
        return State(
            self.time,
            self.version,
            self.dispatched,
            np.array(self.vacant, np.int64),
            np.array([row[0] for row in rows], float),
            np.array([row[1:] for row in rows], np.int64).reshape(-1, 5),
            np.array([row for tier in self.arrived for row in tier], np.int64).reshape(-1, 5),
            np.array(self.counts, np.int64),
            self.discarded,
            self.failed,
        )

    def next(self) -> ServerStep:
        """Through events up to the server's next step."""
        enough = self.schedule.enough
        starts: list[Start] = []
        discarded: list[Arrival] = []
        failed: list[int] = []
        while True:
            if not self.heap or self.heap[0][0] > self.time:
                wake = self.fill(starts)
                if not self.heap and wake == math.inf:
                    raise ValueError(f"availability: nobody is under way at {self.time} s, and nobody comes any more")
                if not self.heap or wake < self.heap[0][0]:
                    self.time = wake
                    continue
            self.time, dispatch, tier, client, version, fails = heappop(self.heap)
            busy = self.busy[tier]
            del busy[bisect_left(busy, self.place[client])]
            if fails:
                failed.append(dispatch)
            else:
                self.arrived[tier].append([dispatch, tier, client, version, 0])
            if enough is None:
                if busy:
                    continue  # the tier waits for its others
                self.vacant[tier] = self.slots[tier]
            else:
                self.vacant[tier] += 1
            if not self.fresh_enough(tier, discarded):
                continue
            arrivals = [self.arrival(row) for row in self.arrived[tier]]
            self.arrived[tier] = []
            self.version += 1
            self.discarded += len(discarded)
            self.failed += len(failed)
            for arrival in (*arrivals, *discarded):
                if arrival.staleness >= len(self.counts):
                    self.counts += [0] * (arrival.staleness + 1 - len(self.counts))
                self.counts[arrival.staleness] += 1
            return ServerStep(self.time, self.version - 1, tier, arrivals, starts, discarded, failed)

    def arrival(self, row: list[int]) -> Arrival:
        dispatch, _, client, version, _ = row
        return Arrival(client, dispatch, version, self.version - version)

    def fresh_enough(self, tier: int, discarded: list[Arrival]) -> bool:
        """Whether the server steps now; what is too stale is taken out first."""
        arrived, bound = self.arrived[tier], self.schedule.max_staleness
        if bound is not None:
            discarded += [self.arrival(row) for row in arrived if self.version - row[3] > bound]
            arrived[:] = [row for row in arrived if self.version - row[3] <= bound]
        return len(arrived) >= (self.schedule.enough or 1)

    def fill(self, starts: list[Start]) -> float:
        """Fill vacant slots with clients who are there; returns when to look again for those that stay vacant."""
        wake = math.inf
        for tier, vacant in enumerate(self.vacant):
            if not vacant:
                continue
            left = vacant
            while left and (client := self.choose(tier)) is not None:
                self.start(tier, client, starts)
                left -= 1
            if self.schedule.enough is None and left < vacant:
                left = 0  # a tier's round is of those who are there
            if left:
                wake = min(wake, float(self.world.presence.until(self.idle(tier), self.time).min(initial=math.inf)))
            self.vacant[tier] = left
        return wake

    def choose(self, tier: int) -> int | None:
        """A client of the tier who is idle and there, each equally likely."""
        members, busy, there = self.members[tier], self.busy[tier], self.clock.there
        idle = len(members) - len(busy)
        if there is None:
            return int(members[_free(busy, int(self.clock.draws.starts(self.dispatched, 0) * idle))])
        for attempt in range(TRIES):
            client = int(members[_free(busy, int(self.clock.draws.starts(self.dispatched, attempt) * idle))])
            if there.at(client, self.time):
                return client
        free = self.idle(tier)
        free = free[self.world.presence.at(free, self.time)]
        return int(free[int(self.clock.draws.starts(self.dispatched, TRIES) * len(free))]) if len(free) else None

    def idle(self, tier: int) -> np.ndarray:
        return np.delete(self.members[tier], self.busy[tier])

    def start(self, tier: int, client: int, starts: list[Start]) -> None:
        dispatch, clock = self.dispatched, self.clock
        share, *factors = clock.draws.trip(dispatch)
        if factors:
            seconds = sum(float(leg[client]) * factor for leg, factor in zip(clock.legs, factors))
        else:
            seconds = float(clock.total[client])
        end, fails = self.time + share * seconds, int(share < 1)
        if clock.there is not None and (away := clock.there.until(client, self.time)) < end:
            end, fails = away, 1
        heappush(self.heap, (end, dispatch, tier, client, self.version, fails))
        insort(self.busy[tier], int(self.place[client]))
        starts.append(Start(client, dispatch, self.version, self.time))
        self.dispatched += 1


class _Draws:
    """What the dispatch numbers bring, drawn for many at once."""

    def __init__(self, world: SimulatedSystem):
        self.world, self.block = world, -1

    def starts(self, dispatch: int, attempt: int) -> float:
        """Where among the idle the client is drawn, in [0, 1)."""
        self._draw(dispatch // BLOCK)
        return self.start[attempt][dispatch % BLOCK]

    def trip(self, dispatch: int) -> tuple[float, ...]:
        """The share of the trip before the client drops out, or 1; then the factors of the legs, if there is jitter."""
        self._draw(dispatch // BLOCK)
        return self.trips[dispatch % BLOCK]

    def _draw(self, block: int) -> None:
        if block == self.block:
            return
        world, self.block, dispatch = self.world, block, block * BLOCK + np.arange(BLOCK)
        attempts = 1 if world.presence.always else TRIES + 1
        self.start = [random.uniform(world.seed, "start", dispatch, a).tolist() for a in range(attempts)]
        columns = [np.ones(BLOCK)]
        if world.dropout:
            drops = random.uniform(world.seed, "dropout", dispatch) < world.dropout
            columns[0] = np.where(drops, random.uniform(world.seed, "dropout", "share", dispatch), 1.0)
        if world.jitter:
            columns += [lognormal_factors(world.jitter, world.seed, "jitter", leg, dispatch) for leg in LEGS]
        self.trips = list(zip(*(column.tolist() for column in columns)))


class _There:
    """A presence asked for single clients: answers are kept while they hold, and found for NEAR clients at once."""

    def __init__(self, presence: Presence, clients: int):
        self.presence = presence
        self.now = np.zeros(clients, bool)
        self.since = np.full(clients, math.inf)
        self.change = np.zeros(clients)

    def at(self, client: int, time: float) -> bool:
        self._find(client, time)
        return bool(self.now[client])

    def until(self, client: int, time: float) -> float:
        self._find(client, time)
        return float(self.change[client])

    def _find(self, client: int, time: float) -> None:
        if self.since[client] <= time < self.change[client]:
            return
        near = slice(client // NEAR * NEAR, client // NEAR * NEAR + NEAR)
        clients = np.arange(near.start, min(near.stop, len(self.now)))
        self.now[near] = self.presence.at(clients, time)
        self.change[near] = self.presence.until(clients, time)
        self.since[near] = time


def _free(busy: list[int], rank: int) -> int:
    """The rank-th of 0, 1, 2, ... that is not in `busy`, which ascends."""
    low, high = 0, len(busy)
    while low < high:
        middle = (low + high) // 2
        if busy[middle] - middle <= rank:
            low = middle + 1
        else:
            high = middle
    return rank + low
