"""The event loop of an asynchronous server: starts, arrivals and failures in order of virtual time."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

import numpy as np

from fl.system.clock_state import Arrival, ClockState, ServerStep, Start
from fl.system.dispatch_draws import ATTEMPTS

if TYPE_CHECKING:
    from fl.system.clock import Clock


class EventLoop:
    """A clock state as a heap and sorted lists, for processing many events."""

    def __init__(self, clock: Clock, state: ClockState):
        self.clock, self.mode, self.system = clock, clock.mode, clock.system
        self.members, self.place, self.slots = clock.members, clock.place, clock.slots
        self.time, self.version, self.dispatched = state.time, state.version, state.dispatched
        self.vacant = state.vacant.tolist()
        self.heap = [(end, *row) for end, row in zip(state.ends.tolist(), state.in_flight.tolist())]
        self.arrived: list[list[list[int]]] = [[] for _ in self.members]
        for row in state.arrived.tolist():
            self.arrived[row[1]].append(row)
        self.busy: list[list[int]] = [[] for _ in self.members]  # positions of clients at work, ascending
        for row in state.in_flight.tolist():
            self.busy[row[1]].append(int(self.place[row[2]]))
        for busy in self.busy:
            busy.sort()
        heapify(self.heap)
        self.counts = state.staleness.tolist()
        self.discarded, self.failed = state.discarded, state.failed

    def state(self) -> ClockState:
        """Return the present state as a value."""
        rows = sorted(self.heap)
        return ClockState(
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
        """Process events up to the next server step."""
        enough = self.mode.enough
        starts: list[Start] = []
        discarded: list[Arrival] = []
        failed: list[int] = []
        while True:
            if not self.heap or self.heap[0][0] > self.time:
                wake = self.fill(starts)
                if not self.heap and wake == math.inf:
                    raise ValueError(
                        f"availability: no client is at work at {self.time} s, and no client will be present again"
                    )
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
                    continue  # the tier waits for its other clients
                self.vacant[tier] = self.slots[tier]
            else:
                self.vacant[tier] += 1
            if not self.is_step_due(tier, discarded):
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
        """Return the arrival of a row (dispatch, tier, client, version, fails)."""
        dispatch, _, client, version, _ = row
        return Arrival(client, dispatch, version, self.version - version)

    def is_step_due(self, tier: int, discarded: list[Arrival]) -> bool:
        """Return whether the server steps now, after moving arrivals that are too stale to `discarded`."""
        arrived, bound = self.arrived[tier], self.mode.max_staleness
        if bound is not None:
            discarded += [self.arrival(row) for row in arrived if self.version - row[3] > bound]
            arrived[:] = [row for row in arrived if self.version - row[3] <= bound]
        return len(arrived) >= (self.mode.enough or 1)

    def fill(self, starts: list[Start]) -> float:
        """Fill free slots with present clients; return the next time at which a remaining slot may be filled."""
        wake = math.inf
        for tier, vacant in enumerate(self.vacant):
            if not vacant:
                continue
            left = vacant
            while left and (client := self.choose(tier)) is not None:
                self.start(tier, client, starts)
                left -= 1
            if self.mode.enough is None and left < vacant:
                left = 0  # a tier's round uses the clients that are present
            if left:
                wake = min(wake, float(self.system.presence.until(self.idle(tier), self.time).min(initial=math.inf)))
            self.vacant[tier] = left
        return wake

    def choose(self, tier: int) -> int | None:
        """Draw a client of the tier uniformly among those that are idle and present; None if there is none."""
        members, busy, presence = self.members[tier], self.busy[tier], self.clock.presence
        idle = len(members) - len(busy)
        if presence is None:
            return int(members[free_rank(busy, int(self.clock.draws.starts(self.dispatched, 0) * idle))])
        for attempt in range(ATTEMPTS):
            client = int(members[free_rank(busy, int(self.clock.draws.starts(self.dispatched, attempt) * idle))])
            if presence.at(client, self.time):
                return client
        free = self.idle(tier)
        free = free[self.system.presence.at(free, self.time)]
        return int(free[int(self.clock.draws.starts(self.dispatched, ATTEMPTS) * len(free))]) if len(free) else None

    def idle(self, tier: int) -> np.ndarray:
        """Return the ids of the tier's clients that are not at work."""
        return np.delete(self.members[tier], self.busy[tier])

    def start(self, tier: int, client: int, starts: list[Start]) -> None:
        """Start a client now and schedule its arrival or failure."""
        dispatch, clock = self.dispatched, self.clock
        share, *factors = clock.draws.round_trip(dispatch)
        if factors:
            seconds = sum(float(leg[client]) * factor for leg, factor in zip(clock.legs, factors))
        else:
            seconds = float(clock.total[client])
        end, fails = self.time + share * seconds, int(share < 1)
        if clock.presence is not None and (away := clock.presence.until(client, self.time)) < end:
            end, fails = away, 1
        heappush(self.heap, (end, dispatch, tier, client, self.version, fails))
        insort(self.busy[tier], int(self.place[client]))
        starts.append(Start(client, dispatch, self.version, self.time))
        self.dispatched += 1


def free_rank(busy: list[int], rank: int) -> int:
    """Return the element with index `rank` of 0, 1, 2, ... without the elements of `busy`, which is ascending.

    >>> [free_rank([1, 2, 5], rank) for rank in range(4)]
    [0, 3, 4, 6]
    """
    low, high = 0, len(busy)
    while low < high:
        middle = (low + high) // 2
        if busy[middle] - middle <= rank:
            low = middle + 1
        else:
            high = middle
    return rank + low
