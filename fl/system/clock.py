"""The virtual clock of an asynchronous server.

    clock = Clock(mode, system, times)             times: legs of each client of the population, without jitter
    state = clock.begin()
    state, step = clock.step(state)                advance to the next server step
    state, steps = clock.run(state, count)         advance by several steps at once

A state is a value: continuing from a stored state gives the same events. Events are ordered by virtual time, ties by
dispatch number. After all events of one time, each free slot takes a client drawn uniformly among those that are idle
and present, with the address (seed, "start", dispatch). A client that drops out, or leaves before it is done, never
arrives and frees its slot at that time. If no client is present, a slot stays free until one comes back.
"""

from __future__ import annotations

import numpy as np

from fl.system.asynchronous import Asynchronous
from fl.system.clock_state import ClockState, ServerStep
from fl.system.dispatch_draws import DispatchDraws
from fl.system.event_loop import EventLoop
from fl.system.presence_cache import PresenceCache
from fl.system.simulated_system import LEGS, SimulatedSystem, Times


class Clock:
    """An asynchronous server mode in a simulated system. A `ValueError` if there are too few clients for it."""

    def __init__(self, mode: Asynchronous, system: SimulatedSystem, times: Times):
        self.mode, self.system = mode, system
        self.total = times.total
        self.legs = [getattr(times, leg) for leg in LEGS]
        self.members = [system.able[members] for members in mode.tiers_of(self.total[system.able])]
        self.slots = mode.slots([len(members) for members in self.members])
        self.place = np.empty(len(self.total), np.int64)  # position of each client in its tier
        for members in self.members:
            self.place[members] = np.arange(len(members))
        self.presence = None if system.presence.always else PresenceCache(system.presence, len(self.total))
        self.draws = DispatchDraws(system)

    def begin(self) -> ClockState:
        """Return the state at time 0, before any client starts."""
        rows = np.zeros((0, 5), np.int64)
        return ClockState(0.0, 0, 0, np.array(self.slots, np.int64), np.zeros(0), rows, rows, np.zeros(0, np.int64))

    def step(self, state: ClockState) -> tuple[ClockState, ServerStep]:
        """Advance to the next server step."""
        state, steps = self.run(state, 1)
        return state, steps[0]

    def run(self, state: ClockState, count: int) -> tuple[ClockState, list[ServerStep]]:
        """Advance by `count` server steps."""
        loop = EventLoop(self, state)
        steps = [loop.next() for _ in range(count)]
        return loop.state(), steps
