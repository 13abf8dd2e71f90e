"""Where a run's time goes: seconds by category for the driver and every worker, and a trace for a viewer.

    driver    |server|encode|transfer|  waits                 |reduce|server|      a round is an outermost span
    worker    | idle        |transfer|data|compute|data|...|encode|reduce| idle |  and so is a worker's call

In each round the categories of a process add up to the round's wall time. `Profile` is a callback
(`fl.run(callbacks=[profile])`) and a context. It writes into the run directory:

    profile.json    seconds by category, for every round and in total, and the driver's part
    trace.json      the spans as Chrome trace events, a track for each process

The processes of a machine read one clock. The clock of a worker on another machine is compared with the driver's when
the worker starts (`clock_shift`), and its spans are moved by the difference.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fl.storage import files
from fl.tracking.callback import Callback, Row, Run
from fl.tracking.spans import (
    CATEGORIES,
    OutermostSpan,
    Seconds,
    Span,
    SpanRecord,
    WorkerRecord,
    record_spans,
    take_record,
    take_worker_records,
)

DRIVER = "driver"
MAX_TRACE_EVENTS = 100_000  # further spans are only counted

Interval = tuple[float, float]  # (start, end) in seconds


class Profile(Callback):
    """Callback that records where the time of a run goes, and writes profile.json and trace.json."""

    def __init__(self) -> None:
        self.directory: Path | None = None
        self.rounds: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.tracks: dict[str, int] = {}
        self.left_out = 0

    def __enter__(self) -> Profile:
        record_spans(True)
        return self

    def __exit__(self, *_: object) -> None:
        self._write()
        record_spans(False)

    def start(self, run: Run) -> None:  # of a run, or of a baseline after it
        self._write()
        self.directory, self.begin = run.directory, time.perf_counter()
        self.rounds, self.events, self.tracks, self.left_out = [], [], {}, 0

    def computed(self, row: Row) -> None:
        self._add_round(row["round"])

    # -- a round --------------------------------------------------------------------------------------------------
    def _add_round(self, number: int) -> None:
        own, answers = self._take()
        round_ = next(each for each in own.outermost if each.span.name == "round")
        in_round = [answer for answer in answers if answer.asked >= round_.span.start]
        driver, workers = seconds_of_round(round_, own.spans, in_round)
        row = {"round": number, "wall_seconds": round_.span.seconds, "processes": 1 + len(workers)}
        self.rounds.append({**row, "seconds": _sum([driver, *workers.values()]), "driver": _sum([driver])})

    def _take(self) -> tuple[SpanRecord, list[WorkerRecord]]:
        """New spans of the driver and of the workers, which also go into the trace."""
        own = take_record()
        assert own is not None, "a Profile watches while it is entered"
        answers = take_worker_records()
        self._trace(DRIVER, own)
        for answer in answers:
            start = answer.record.outermost[0].span.start
            way = Span("transfer", "on its way", None, answer.asked, start - answer.asked)
            self._trace(answer.worker, answer.record._replace(spans=[way, *answer.record.spans]))
        return own, answers

    # -- results --------------------------------------------------------------------------------------------------
    @property
    def shares(self) -> dict[str, float]:
        """Share of each category in the time of all processes; the driver's waiting uses no core and is left out."""
        total = {name: seconds for name, seconds in self._total("seconds").items() if name != "waits"}
        return {name: seconds / sum(total.values()) for name, seconds in total.items()}

    def _total(self, column: str) -> Seconds:
        return _sum(row[column] for row in self.rounds)

    def __str__(self) -> str:
        if not self.rounds:
            return "no round"
        seconds = statistics.median(row["wall_seconds"] for row in self.rounds)
        workers = max(row["processes"] for row in self.rounds) - 1
        return f"{len(self.rounds)} rounds, median {1e3 * seconds:,.1f} ms; the driver and {workers} workers"

    def table(self) -> list[dict[str, Any]]:
        """A row per category: milliseconds in the median round (driver, mean worker), its share, and what it covers."""
        rows = []
        workers = max((row["processes"] for row in self.rounds), default=1) - 1
        shares = self.shares
        for name in self._total("seconds"):
            driver = [1e3 * row["driver"].get(name, 0.0) for row in self.rounds]
            all_ = [1e3 * row["seconds"].get(name, 0.0) for row in self.rounds]
            line: dict[str, Any] = {"category": name, "driver ms": statistics.median(driver)}
            if workers:
                line["worker ms"] = statistics.median((total - own) / workers for total, own in zip(all_, driver))
            share = 100 * shares[name] if name in shares else None
            rows.append(line | {"share %": share, "what it is": CATEGORIES[name]})
        return rows

    def _trace(self, process: str, record: SpanRecord) -> None:
        """Add spans as Chrome trace events, in microseconds since the start of the run."""
        if process not in self.tracks:
            self.tracks[process] = len(self.tracks)
            place = {"pid": self.tracks[process], "tid": 0}
            self.events.append({"ph": "M", "name": "process_name", "args": {"name": process}, **place})
        place = {"pid": self.tracks[process], "tid": 0}
        room = max(0, MAX_TRACE_EVENTS - len(self.events))
        self.left_out += record.left_out + max(0, len(record.spans) - room)
        for span in record.spans[:room]:
            event = {"ph": "X", "name": span.name, "cat": span.category, **place}
            event |= {"ts": 1e6 * (span.start - self.begin), "dur": 1e6 * span.seconds}
            self.events.append(event if span.detail is None else event | {"args": {"number": span.detail}})

    def _write(self) -> None:
        if self.directory is None:
            return
        self._take()  # spans after the last round
        total = {
            "wall_seconds": sum(row["wall_seconds"] for row in self.rounds),
            "seconds": self._total("seconds"),
            "driver": self._total("driver"),
            "shares": self.shares,
        }
        profile = {"categories": CATEGORIES, "total": total, "rounds": self.rounds, "spans_left_out": self.left_out}
        files.write_file(self.directory / "profile.json", json.dumps(profile, indent=2) + "\n")
        files.write_file(self.directory / "trace.json", json.dumps(self.events) + "\n")


def seconds_of_round(
    round_: OutermostSpan, spans: list[Span], answers: list[WorkerRecord]
) -> tuple[Seconds, dict[str, Seconds]]:
    """Seconds by category in a round: (of the driver, of each worker by name).

    While the driver waits and no worker works, a call or an answer is on its way: that time is transfer, for the driver
    and for every worker. For a worker, the time from the call to its start is transfer too. Otherwise a worker outside
    its calls is idle.
    """
    waits = [(s.start, s.start + s.seconds) for s in spans if s.category == "waits"]
    calls = [(answer, each) for answer in answers for each in answer.record.outermost]
    working = [(each.span.start, each.span.start + each.span.seconds) for _, each in calls]
    nobody_works = _length_outside(waits, working)
    driver = _sum([round_.by_category, {"transfer": nobody_works, "waits": -nobody_works}])
    asked_or_working = [(min(answer.asked, start), end) for (answer, _), (start, end) in zip(calls, working)]
    answers_under_way = _length_outside(waits, asked_or_working)
    workers: dict[str, Seconds] = {}
    for answer, each in calls:
        before = workers.get(answer.worker, {"transfer": answers_under_way})
        call_under_way = each.span.start - answer.asked
        workers[answer.worker] = _sum([before, each.by_category, {"transfer": call_under_way}])
    for seconds in workers.values():
        seconds["idle"] = round_.span.seconds - sum(seconds.values())
    return driver, workers


def _length_outside(intervals: list[Interval], others: list[Interval]) -> float:
    """Length of disjoint intervals outside all others.

    >>> _length_outside([(0.0, 10.0)], [(2.0, 5.0), (4.0, 7.0)])
    5.0
    """
    total, others = 0.0, sorted(others)
    for a, b in intervals:
        for start, end in others:
            if end > a and start < b:
                total += max(0.0, start - a)
                a = max(a, min(end, b))
        total += b - a
    return total


def _sum(parts: Iterable[Seconds]) -> Seconds:
    """Sum in the order of `CATEGORIES`; categories without time are left out."""
    parts = list(parts)
    sums = {name: sum(part.get(name, 0.0) for part in parts) for name in CATEGORIES}
    return {name: seconds for name, seconds in sums.items() if seconds}
