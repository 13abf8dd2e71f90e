"""Who is there at what time.

    presence = draw(seed, clients)          presence.at(clients, time) -> (n,) bool
                                            presence.until(clients, time) -> (n,) when that changes; infinite: never

`time` is in seconds of the virtual clock, a number or (n,). What holds at a time holds up to the next change, that time left out:
at(c, until(c, t)) is never at(c, t).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from fl.registry import register
from fl.system.devices import by_id, content, taken
from fl.tensors import random

AHEAD = 1 << 20  # periods that are looked at for a change


class Presence:
    """What was drawn: pure functions of client and time. The default is that everybody always is there."""

    always = True

    def at(self, clients: np.ndarray, time: float | np.ndarray) -> np.ndarray:
        """(n,) bool."""
        return np.ones(len(clients), bool)

    def until(self, clients: np.ndarray, time: float | np.ndarray) -> np.ndarray:
        """(n,): the next time at which a client who is there goes away, or one who is not comes."""
        return np.full(len(clients), math.inf)

    def ready(self, clients: np.ndarray, time: float | np.ndarray) -> np.ndarray:
        """(n,): the first time from `time` on at which each is there."""
        return np.where(self.at(clients, time), time, self.until(clients, time))


class Availability:
    """Base of parts that say who is there when: frozen dataclasses of their parameters."""

    def draw(self, seed: int, clients: int) -> Presence:
        """The presence of clients 0..clients-1; a `ValueError` if there is none for so many."""
        raise NotImplementedError


@register("availability", "always")
@dataclass(frozen=True, kw_only=True)
class Always(Availability):
    """Everybody, at all times."""

    def draw(self, seed, clients):
        return Presence()


@register("availability", "bernoulli")
@dataclass(frozen=True, kw_only=True)
class Bernoulli(Availability):
    """In each period of `seconds` a client is there with probability `p`, whatever was before.    Neutral: p=1 is `always`."""

    p: float
    seconds: float = 3600.0

    def __post_init__(self):
        if not 0 < self.p <= 1:
            raise ValueError(f"p: {self.p} is not in (0, 1]")
        _check_seconds(self.seconds)

    def draw(self, seed, clients):
        return Presence() if self.p == 1 else Periods(seed, self.seconds, self.p)


@register("availability", "diurnal")
@dataclass(frozen=True, kw_only=True)
class Diurnal(Availability):
    """Day and night: in each period of `seconds` that begins at t, client c is there with probability

        p_c(t) = p + amplitude sin(2 pi (t / day + z_c / zones))        z_c uniform in 0..zones-1: its time zone

    Neutral: amplitude=0 is `bernoulli`.
    """

    p: float = 0.5
    amplitude: float = 0.4
    zones: int = 24
    seconds: float = 3600.0
    day: float = 86400.0

    def __post_init__(self):
        if not 0 < self.p <= 1:
            raise ValueError(f"p: {self.p} is not in (0, 1]")
        if not 0 <= self.amplitude <= min(self.p, 1 - self.p):
            raise ValueError(f"amplitude: {self.amplitude} takes the probability {self.p} out of [0, 1]")
        if self.zones < 1:
            raise ValueError(f"zones: {self.zones} is not at least 1")
        _check_seconds(self.seconds)
        if not 0 < self.day < math.inf:
            raise ValueError(f"day: {self.day} is not a positive number of seconds")

    def draw(self, seed, clients):
        if self.amplitude == 0:
            return Bernoulli(p=self.p, seconds=self.seconds).draw(seed, clients)
        return Periods(seed, self.seconds, self.p, self.amplitude, self.zones, self.day)


@dataclass(frozen=True)
class Periods(Presence):
    """Presence drawn by the address (seed, "available", client, period)."""

    seed: int
    seconds: float
    p: float
    amplitude: float = 0.0
    zones: int = 1
    day: float = 86400.0

    always = False

    def at(self, clients, time):
        return self._there(np.asarray(clients), _cycle(np.asarray(time, float), self.seconds))

    def until(self, clients, time):
        clients = np.asarray(clients)
        period = np.broadcast_to(_cycle(np.asarray(time, float), self.seconds), clients.shape)
        now, change = self._there(clients, period), np.full(len(clients), math.inf)
        waiting, ahead, block = np.arange(len(clients)), 1, 1
        while len(waiting) and ahead < AHEAD:
            periods = period[waiting, None] + np.arange(ahead, ahead + block)
            other = self._there(clients[waiting, None], periods) != now[waiting, None]
            found = other.any(1)
            change[waiting[found]] = periods[found, other[found].argmax(1)] * self.seconds
            waiting, ahead = waiting[~found], ahead + block
            block = min(2 * block, max(1, AHEAD // max(1, len(waiting))), AHEAD - ahead or 1)
        return change

    def _there(self, clients: np.ndarray, period: np.ndarray) -> np.ndarray:
        p: float | np.ndarray = self.p
        if self.amplitude:
            zone = np.floor(random.uniform(self.seed, "zone", clients) * self.zones)
            p = self.p + self.amplitude * np.sin(2 * np.pi * (period * self.seconds / self.day + zone / self.zones))
        return random.uniform(self.seed, "available", clients, period) < p


@register("availability", "trace")
@dataclass(frozen=True, kw_only=True)
class Trace(Availability):
    """Windows from a file, over and over: client c has the entry of the c-th id in ascending order.

    path: .json in the form of FedScale's client_behave_trace (its pickle is never read),
    {id: {"active": [t, ...], "inactive": [t, ...], "finish_time": t}}: there from active[i] on, away from inactive[i] on, the whole
    repeated every finish_time seconds; "duration" and "model" are not used. repeat: more clients than entries take them again from
    the first. The path is looked for from the present folder, then from the data folder.

    FedScale's own file becomes such a .json by, in a Python that trusts it,
    json.dump(pickle.load(open("client_behave_trace", "rb")), open("client_behave_trace.json", "w")).
    """

    path: str
    repeat: bool = False

    def draw(self, seed, clients):
        entries = by_id(_mapping(self.path), self.path)
        read = [_changes(self.path, key, entry) for key, entry in entries]
        times, first, finish = zip(*read)
        ends = np.concatenate([[0], np.cumsum([len(each) for each in times])])
        flat = np.concatenate([*times, [math.inf]])  # one more, so that every client's first index exists
        whose = taken(len(entries), clients, self.path, self.repeat)
        return Windows(flat, ends[:-1], np.diff(ends), np.array(first), np.array(finish, float), whose)


@dataclass(frozen=True)
class Windows(Presence):
    """Cyclic presence: entry e changes at changes[begin[e]:begin[e] + count[e]], ascending in [0, finish[e]), and is `before[e]` in
    front of the first of them. Client c has entry entry[c]."""

    changes: np.ndarray
    begin: np.ndarray
    count: np.ndarray
    before: np.ndarray
    finish: np.ndarray
    entry: np.ndarray

    always = False

    def at(self, clients, time):
        entry, _, passed = self._passed(clients, time)
        return self.before[entry] ^ (passed % 2 == 1)

    def until(self, clients, time):
        entry, cycle, passed = self._passed(clients, time)
        over = passed == self.count[entry]
        following = self.changes[self.begin[entry] + np.where(over, 0, passed)]
        return np.where(self.count[entry] == 0, math.inf, self._absolute(entry, cycle + over, following))

    def _passed(self, clients: np.ndarray, time: float | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(entry, cycle, how many of its changes are passed in this cycle), each (n,): by bisection."""
        entry = self.entry[np.asarray(clients)]
        time = np.broadcast_to(np.asarray(time, float), entry.shape)
        cycle = _cycle(time, self.finish[entry])
        low, high = np.zeros(len(entry), np.int64), self.count[entry].astype(np.int64)
        while (low < high).any():
            middle = (low + high) // 2
            passed = (low < high) & (
                self._absolute(
                    entry, cycle, self.changes[np.minimum(self.begin[entry] + middle, len(self.changes) - 1)]
                )
                <= time
            )
            low, high = np.where(passed, middle + 1, low), np.where(passed, high, np.minimum(middle, high))
        return entry, cycle, low

    def _absolute(self, entry: np.ndarray, cycle: np.ndarray, change: np.ndarray) -> np.ndarray:
        return cycle * self.finish[entry] + change


def _cycle(time: np.ndarray, length: float | np.ndarray) -> np.ndarray:
    """k with k length <= time < (k + 1) length, as these products round."""
    k = np.floor(time / length)
    k = np.where(time < k * length, k - 1, k)
    return np.where(time >= (k + 1) * length, k + 1, k)


def _mapping(path: str) -> dict:
    if not path.endswith(".json"):
        raise ValueError(f"path: {path} is not .json; FedScale's pickle is converted once, see docs/system.md")
    entries = content(path)
    if not isinstance(entries, dict):
        raise ValueError(f"path: {path} holds a {type(entries).__name__}, not windows by client")
    return entries


def _changes(path: str, key: str, entry: object) -> tuple[np.ndarray, bool, float]:
    """(times of change in [0, finish), ascending; what is before the first of them; finish) of one entry."""
    where = f"path: {path}: client {key}:"
    if not isinstance(entry, dict):
        raise ValueError(f"{where} {entry!r:.40} has no active, inactive and finish_time")
    for name in ("active", "inactive", "finish_time"):
        numbers = entry.get(name) if name != "finish_time" else [entry.get(name)]
        if not isinstance(numbers, list):
            raise ValueError(f"{where} {name} is {'missing' if numbers is None else 'not a list'}")
        for i, number in enumerate(numbers):
            if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number < math.inf:
                place = f"{name}[{i}]" if name != "finish_time" else name
                raise ValueError(f"{where} {place} {number!r} is not a number from 0")
    active, inactive, finish = entry["active"], entry["inactive"], entry["finish_time"]
    if len(active) != len(inactive) or not active:
        raise ValueError(
            f"{where} {len(active)} times active beside {len(inactive)} inactive; at least one, and as many of both"
        )
    for i, (come, go) in enumerate(zip(active, inactive)):
        if come >= go:
            raise ValueError(f"{where} inactive[{i}] {go} is not after active[{i}] {come}")
        if i and come < inactive[i - 1]:
            raise ValueError(f"{where} active[{i}] {come} is before inactive[{i - 1}] {inactive[i - 1]}")
    if inactive[-1] > finish:
        raise ValueError(f"{where} inactive[{len(inactive) - 1}] {inactive[-1]} is after finish_time {finish}")
    flips = Counter(t % finish for t in (*active, *inactive))
    once = sorted(t for t, times in flips.items() if times == 1)  # a window that begins where another ends goes on
    return np.array(once, float), inactive[-1] == finish, finish


def _check_seconds(seconds: float) -> None:
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds: {seconds} is not a positive number")
