"""Availability from a trace file."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np

from fl.registry import register
from fl.system.availability import Availability, Presence, cycle_index
from fl.system.trace_file import entry_of_client, read_json, sorted_by_id


@register("availability", "trace")
@dataclass(frozen=True, kw_only=True)
class AvailabilityTrace(Availability):
    """Windows of presence from a file, repeated cyclically. Client c has the entry with the c-th id in ascending order.

    The file is .json in the form of FedScale's client_behave_trace (a pickle is never read):
    {id: {"active": [t, ...], "inactive": [t, ...], "finish_time": t}}. The client is present from active[i] until
    inactive[i], and the whole repeats every finish_time seconds. "duration" and "model" are ignored.

    To convert FedScale's own file, run in a Python that may load it:
    json.dump(pickle.load(open("client_behave_trace", "rb")), open("client_behave_trace.json", "w")).

    Args:
        path: The file, relative to the current directory or to the data folder.
        repeat: Start again from the first entry if there are more clients than entries. Otherwise that is an error.
    """

    path: str
    repeat: bool = False

    def draw(self, seed: int, clients: int) -> Presence:
        entries = sorted_by_id(_mapping(self.path), self.path)
        read = [_changes(self.path, key, entry) for key, entry in entries]
        times, first, finish = zip(*read)
        ends = np.concatenate([[0], np.cumsum([len(each) for each in times])])
        flat = np.concatenate([*times, [math.inf]])  # one more element, so that each client's first index exists
        entry = entry_of_client(len(entries), clients, self.path, self.repeat)
        return WindowPresence(flat, ends[:-1], np.diff(ends), np.array(first), np.array(finish, float), entry)


@dataclass(frozen=True)
class WindowPresence(Presence):
    """Cyclic presence. Client c has the entry e = entry[c].

    Entry e changes at changes[begin[e] : begin[e] + count[e]], ascending in [0, finish[e]). Before the first change its
    presence is before[e].
    """

    changes: np.ndarray
    begin: np.ndarray
    count: np.ndarray
    before: np.ndarray
    finish: np.ndarray
    entry: np.ndarray

    always = False

    def at(self, clients: np.ndarray, time: float | np.ndarray) -> np.ndarray:
        entry, _, passed = self._passed(clients, time)
        return self.before[entry] ^ (passed % 2 == 1)

    def until(self, clients: np.ndarray, time: float | np.ndarray) -> np.ndarray:
        entry, cycle, passed = self._passed(clients, time)
        over = passed == self.count[entry]
        following = self.changes[self.begin[entry] + np.where(over, 0, passed)]
        return np.where(self.count[entry] == 0, math.inf, self._absolute(entry, cycle + over, following))

    def _passed(self, clients: np.ndarray, time: float | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (entry, cycle, number of changes passed in this cycle), each (n,), found by bisection."""
        entry = self.entry[np.asarray(clients)]
        time = np.broadcast_to(np.asarray(time, float), entry.shape)
        cycle = cycle_index(time, self.finish[entry])
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


def _mapping(path: str) -> dict[str, object]:
    if not path.endswith(".json"):
        raise ValueError(f"path: {path} is not .json; docs/system.md shows how to convert FedScale's pickle")
    entries = read_json(path)
    if not isinstance(entries, dict):
        raise ValueError(
            f"path: {path} holds a {type(entries).__name__} instead of an object with one entry per client"
        )
    return entries


def _changes(path: str, key: str, entry: object) -> tuple[np.ndarray, bool, float]:
    """Return (times of change, ascending in [0, finish); presence before the first change; finish) of one entry."""
    where = f"path: {path}: client {key}:"
    if not isinstance(entry, dict):
        raise ValueError(f"{where} {entry!r:.40} is not an object with active, inactive and finish_time")
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
            f"{where} {len(active)} active and {len(inactive)} inactive times; "
            "their numbers must be equal and at least 1"
        )
    for i, (come, go) in enumerate(zip(active, inactive)):
        if come >= go:
            raise ValueError(f"{where} inactive[{i}] {go} is not after active[{i}] {come}")
        if i and come < inactive[i - 1]:
            raise ValueError(f"{where} active[{i}] {come} is before inactive[{i - 1}] {inactive[i - 1]}")
    if inactive[-1] > finish:
        raise ValueError(f"{where} inactive[{len(inactive) - 1}] {inactive[-1]} is after finish_time {finish}")
    flips = Counter(t % finish for t in (*active, *inactive))
    once = sorted(t for t, times in flips.items() if times == 1)  # windows that touch are joined
    return np.array(once, float), inactive[-1] == finish, finish
