"""Availability: which clients are present at which time.

    presence = draw(seed, clients)
    presence.at(clients, time) -> (n,) bool          whether each client is present
    presence.until(clients, time) -> (n,)            time of its next change; infinite if there is none

`time` is in seconds of the virtual clock, a number or an array (n,). A change takes effect at its time:
at(c, until(c, t)) always differs from at(c, t).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fl.checks import at_least, within
from fl.registry import register
from fl.tensors import random

MAX_PERIODS = 1 << 20  # `until` searches this many periods for a change


class Presence:
    """Drawn availability: pure functions of client and time. In this base class all clients are always present."""

    always = True

    def at(self, clients: np.ndarray, time: float | np.ndarray) -> np.ndarray:
        """Return (n,) bool: whether each client is present at `time`."""
        return np.ones(len(clients), bool)

    def until(self, clients: np.ndarray, time: float | np.ndarray) -> np.ndarray:
        """Return (n,): the next time after `time` at which each client leaves or comes back; infinite if never."""
        return np.full(len(clients), math.inf)

    def ready(self, clients: np.ndarray, time: float | np.ndarray) -> np.ndarray:
        """Return (n,): the first time from `time` on at which each client is present; infinite if never."""
        return np.where(self.at(clients, time), time, self.until(clients, time))


class Availability:
    """Base of availability models: frozen dataclasses of their hyper-parameters."""

    def draw(self, seed: int, clients: int) -> Presence:
        """Draw the presence of clients 0..clients-1. A `ValueError` if the model does not cover that many clients."""
        raise NotImplementedError


@register("availability", "always")
@dataclass(frozen=True, kw_only=True)
class Always(Availability):
    """All clients are present at all times."""

    def draw(self, seed: int, clients: int) -> Presence:
        return Presence()


@register("availability", "bernoulli")
@dataclass(frozen=True, kw_only=True)
class Bernoulli(Availability):
    """In each period a client is present with probability p, independently of other periods.

    Neutral: p=1 is `always`.

    Args:
        p: Probability of being present, in (0, 1].
        seconds: Length of a period in seconds of virtual time; positive.
    """

    p: float
    seconds: float = 3600.0

    def __post_init__(self) -> None:
        within("(0, 1]", p=self.p)
        within("(0, inf)", seconds=self.seconds)

    def draw(self, seed: int, clients: int) -> Presence:
        return Presence() if self.p == 1 else PeriodicPresence(seed, self.seconds, self.p)


@register("availability", "diurnal")
@dataclass(frozen=True, kw_only=True)
class Diurnal(Availability):
    """Day and night: the probability of presence follows a sine. In a period that begins at time t it is

        p_c(t) = p + amplitude sin(2 pi (t / day + z_c / zones))        z_c: time zone, uniform in 0..zones-1

    Neutral: amplitude=0 is `bernoulli`.

    Args:
        p: Mean probability of being present, in (0, 1].
        amplitude: Amplitude of the daily cycle, from 0 to min(p, 1 - p).
        zones: Number of time zones, at least 1.
        seconds: Length of a period in seconds of virtual time; positive.
        day: Length of a day in seconds of virtual time; positive.
    """

    p: float = 0.5
    amplitude: float = 0.4
    zones: int = 24
    seconds: float = 3600.0
    day: float = 86400.0

    def __post_init__(self) -> None:
        within("(0, 1]", p=self.p)
        if not 0 <= self.amplitude <= min(self.p, 1 - self.p):
            raise ValueError(f"amplitude: {self.amplitude} takes the probability {self.p} out of [0, 1]")
        at_least(1, zones=self.zones)
        within("(0, inf)", seconds=self.seconds, day=self.day)

    def draw(self, seed: int, clients: int) -> Presence:
        if self.amplitude == 0:
            return Bernoulli(p=self.p, seconds=self.seconds).draw(seed, clients)
        return PeriodicPresence(seed, self.seconds, self.p, self.amplitude, self.zones, self.day)


@dataclass(frozen=True)
class PeriodicPresence(Presence):
    """Presence per period, drawn with the address (seed, "available", client, period)."""

    seed: int
    seconds: float
    p: float
    amplitude: float = 0.0
    zones: int = 1
    day: float = 86400.0

    always = False

    def at(self, clients: np.ndarray, time: float | np.ndarray) -> np.ndarray:
        return self._is_present(np.asarray(clients), cycle_index(np.asarray(time, float), self.seconds))

    def until(self, clients: np.ndarray, time: float | np.ndarray) -> np.ndarray:
        clients = np.asarray(clients)
        period = np.broadcast_to(cycle_index(np.asarray(time, float), self.seconds), clients.shape)
        now, change = self._is_present(clients, period), np.full(len(clients), math.inf)
        waiting, ahead, block = np.arange(len(clients)), 1, 1
        while len(waiting) and ahead < MAX_PERIODS:
            periods = period[waiting, None] + np.arange(ahead, ahead + block)
            other = self._is_present(clients[waiting, None], periods) != now[waiting, None]
            found = other.any(1)
            change[waiting[found]] = periods[found, other[found].argmax(1)] * self.seconds
            waiting, ahead = waiting[~found], ahead + block
            block = min(2 * block, max(1, MAX_PERIODS // max(1, len(waiting))), MAX_PERIODS - ahead or 1)
        return change

    def _is_present(self, clients: np.ndarray, period: np.ndarray) -> np.ndarray:
        p: float | np.ndarray = self.p
        if self.amplitude:
            zone = np.floor(random.uniform(self.seed, "zone", clients) * self.zones)
            p = self.p + self.amplitude * np.sin(2 * np.pi * (period * self.seconds / self.day + zone / self.zones))
        return random.uniform(self.seed, "available", clients, period) < p


def cycle_index(time: np.ndarray, length: float | np.ndarray) -> np.ndarray:
    """Return k with k * length <= time < (k + 1) * length, where the products are rounded."""
    k = np.floor(time / length)
    k = np.where(time < k * length, k - 1, k)
    return np.where(time >= (k + 1) * length, k + 1, k)
