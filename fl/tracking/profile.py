"""Where a run's time goes: spans in the driver and in every worker, their seconds by category, and a trace for a viewer.

    driver    |server|encode|transfer|  waits                 |reduce|server|      a round is an outermost span
    worker    | idle        |transfer|data|compute|data|...|encode|reduce| idle |  as is a worker's call

Spans nest, and a span's own time, what is inside left out, is its category's: the categories of an outermost span add up to
it. Workers send theirs along with what they answer; a round's categories add up to its wall time for every process. Until
somebody enters a `Profile`, spans are nothing, and `each` and `timed` give back what they were given.

`Profile` is a watcher (`fl.run(watch=...)`) and a context. It writes into the run directory:

    profile.json    seconds by category, of every round and in all, and the driver's part of them
    trace.json      the spans as Chrome trace events, a track for each process

All processes of a machine read one clock. The clock of a worker on another machine is compared with the driver's when it
comes (`clock_shift`), and its spans are moved by the difference.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

CATEGORIES = {
    "data": "batches and clients' states, gathered and written",
    "compute": "local training",
    "encode": "transforms and codecs, either way",
    "reduce": "updates lifted and folded",
    "evaluate": "metrics of models",
    "server": "the strategy, sampling, books, commits",
    "transfer": "orders and answers: packed, on their way, opened",
    "waits": "the driver, while workers work",
    "idle": "workers that have nothing to do",
}
DRIVER = "driver"
KEPT = 100_000  # spans in a trace; later ones are only counted
SENT = 20_000  # spans that a worker sends of one call, likewise
ASKED = 5  # times that a far clock is

Seconds = dict[str, float]  # by category


class Span(NamedTuple):
    category: str
    name: str
    detail: Any  # of what: a round's number, a task's; `None` for nothing
    start: float
    seconds: float


class Whole(NamedTuple):
    """An outermost span, and the seconds of each category in it."""

    span: Span
    booked: Seconds


class Record(NamedTuple):
    """What a process has been through since it was last asked."""

    wholes: list[Whole]
    spans: list[Span]
    left_out: int


class Arrived(NamedTuple):
    """A worker's record, in the driver's time; `asked`: when the driver made the call."""

    worker: str
    asked: float
    record: Record


# -- in every process -------------------------------------------------------------------------------------------------
class _Recorder:
    def __init__(self) -> None:
        self.open: list[_Open] = []
        self.wholes: list[Whole] = []
        self.spans: list[Span] = []
        self.booked: Seconds = {}
        self.arrived: list[Arrived] = []

    def close(self, span: Span, inside: float) -> None:
        self.booked[span.category] = self.booked.get(span.category, 0.0) + span.seconds - inside
        self.spans.append(span)
        if self.open:
            self.open[-1].inside += span.seconds
        else:
            self.wholes.append(Whole(span, self.booked))
            self.booked = {}

    def take(self, most: int | None = None) -> Record:
        wholes, spans, self.wholes, self.spans = self.wholes, self.spans, [], []
        return Record(wholes, spans[:most], len(spans) - len(spans[:most]))


class _Open:
    """A span under way."""

    __slots__ = ("recorder", "category", "name", "detail", "start", "inside")

    def __init__(self, recorder: _Recorder, category: str, name: str, detail: Any):
        self.recorder, self.category, self.name, self.detail = recorder, category, name, detail

    def __enter__(self) -> None:
        self.inside = 0.0
        self.recorder.open.append(self)
        self.start = time.perf_counter()

    def __exit__(self, *_: Any) -> None:
        seconds = time.perf_counter() - self.start
        self.recorder.open.pop()
        self.recorder.close(Span(self.category, self.name, self.detail, self.start, seconds), self.inside)


_recorder: _Recorder | None = None
_NOTHING = contextlib.nullcontext()
_END = object()


def record(on: bool) -> None:
    """Begin to record spans in this process, anew, or stop it."""
    global _recorder
    _recorder = _Recorder() if on else None


def recording() -> bool:
    return _recorder is not None


def span(category: str, name: str, detail: Any = None) -> contextlib.AbstractContextManager[None]:
    """What runs in this context is of a category."""
    return _NOTHING if _recorder is None else _Open(_recorder, category, name, detail)


def each(category: str, name: str, items: Iterable[Any]) -> Iterable[Any]:
    """The items, with a span for the making of each."""
    return items if _recorder is None else _each(category, name, iter(items))


def _each(category: str, name: str, items: Iterator[Any]) -> Iterator[Any]:
    while True:
        with span(category, name):
            item = next(items, _END)
        if item is _END:
            return
        yield item


def timed(category: str, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with a span for each of its calls."""
    if _recorder is None:
        return function

    def call(*arguments: Any) -> Any:
        with span(category, name):
            return function(*arguments)

    return call


def taken(most: int | None = None) -> Record | None:
    """What has been recorded since this was last asked, of the spans at `most` so many; `None` if nobody records."""
    return None if _recorder is None else _recorder.take(most)


# -- in the driver ----------------------------------------------------------------------------------------------------
def arrived(worker: str, asked: float, record: Record | None, shift: float = 0.0) -> None:
    """Take up what a worker sent; `shift` is what the driver's clock shows beyond the worker's."""
    if _recorder is None or record is None:
        return
    if shift:
        wholes = [Whole(_moved(whole.span, shift), whole.booked) for whole in record.wholes]
        record = Record(wholes, [_moved(span, shift) for span in record.spans], record.left_out)
    _recorder.arrived.append(Arrived(worker, asked, record))


def _moved(span: Span, shift: float) -> Span:
    return span._replace(start=span.start + shift)


def clock_shift(ask: Callable[[], float], clock: Callable[[], float] = time.perf_counter) -> float:
    """Our clock less another's, which `ask` reads: of several times the one that took least, taken to be read half-way."""
    tries = []
    for _ in range(ASKED):
        before = clock()
        there = ask()
        after = clock()
        tries.append((after - before, (before + after) / 2 - there))
    return min(tries)[1]


class Profile:
    """See the module."""

    def __init__(self) -> None:
        self.directory: Path | None = None
        self.rounds: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.tracks: dict[str, int] = {}
        self.left_out = 0

    def __enter__(self) -> Profile:
        record(True)
        return self

    def __exit__(self, *_: Any) -> None:
        self._write()
        record(False)

    def __call__(self, event: str, value: Any) -> None:
        if event == "start":  # of a run, or of a baseline after it
            self._write()
            self.directory, self.begin = value.directory, time.perf_counter()
            self.rounds, self.events, self.tracks, self.left_out = [], [], {}, 0
        if event == "round":
            self._round(value["round"])

    # -- a round --------------------------------------------------------------------------------------------------
    def _round(self, number: int) -> None:
        own, answers = self._take()
        whole = next(w for w in own.wholes if w.span.name == "round")
        of_round = [answer for answer in answers if answer.asked >= whole.span.start]
        driver, workers = _booked(whole, own.spans, of_round)
        row = {"round": number, "wall_seconds": whole.span.seconds, "processes": 1 + len(workers)}
        self.rounds.append({**row, "seconds": _sum([driver, *workers.values()]), "driver": _sum([driver])})

    def _take(self) -> tuple[Record, list[Arrived]]:
        """What has come since this was last asked, which goes into the trace."""
        assert _recorder is not None, "a Profile watches while it is entered"
        own, answers, _recorder.arrived = _recorder.take(), _recorder.arrived, []
        self._trace(DRIVER, own)
        for answer in answers:
            begun = answer.record.wholes[0].span.start
            way = Span("transfer", "on its way", None, answer.asked, begun - answer.asked)
            self._trace(answer.worker, answer.record._replace(spans=[way, *answer.record.spans]))
        return own, answers

    # -- what comes of it -----------------------------------------------------------------------------------------
    @property
    def shares(self) -> dict[str, float]:
        """Of the time of all processes in all rounds, without the driver's waiting, which takes no core."""
        total = {name: seconds for name, seconds in self._total("seconds").items() if name != "waits"}
        return {name: seconds / sum(total.values()) for name, seconds in total.items()}

    def _total(self, whose: str) -> Seconds:
        return _sum(row[whose] for row in self.rounds)

    def __str__(self) -> str:
        if not self.rounds:
            return "no round"
        seconds = statistics.median(row["wall_seconds"] for row in self.rounds)
        workers = max(row["processes"] for row in self.rounds) - 1
        return f"{len(self.rounds)} rounds, the median one {1e3 * seconds:,.1f} ms; {workers} workers beside the driver"

    def table(self) -> list[dict[str, Any]]:
        """A row for each category that took time: milliseconds of the median round, of the driver and of the mean worker, and
        its share."""
        rows, workers, shares = [], max((row["processes"] for row in self.rounds), default=1) - 1, self.shares
        for name in self._total("seconds"):
            driver = [1e3 * row["driver"].get(name, 0.0) for row in self.rounds]
            whole = [1e3 * row["seconds"].get(name, 0.0) for row in self.rounds]
            line: dict[str, Any] = {"category": name, "driver ms": statistics.median(driver)}
            if workers:
                line["worker ms"] = statistics.median((all_ - own) / workers for all_, own in zip(whole, driver))
            share = 100 * shares[name] if name in shares else None
            rows.append(line | {"share %": share, "what it is": CATEGORIES[name]})
        return rows

    def _trace(self, process: str, record: Record) -> None:
        if process not in self.tracks:
            self.tracks[process] = len(self.tracks)
            place = {"pid": self.tracks[process], "tid": 0}
            self.events.append({"ph": "M", "name": "process_name", "args": {"name": process}, **place})
        place = {"pid": self.tracks[process], "tid": 0}
        room = max(0, KEPT - len(self.events))
        self.left_out += record.left_out + max(0, len(record.spans) - room)
        for span in record.spans[:room]:
            event = {"ph": "X", "name": span.name, "cat": span.category, **place}
            event |= {"ts": 1e6 * (span.start - self.begin), "dur": 1e6 * span.seconds}
            self.events.append(event if span.detail is None else event | {"args": {"number": span.detail}})

    def _write(self) -> None:
        if self.directory is None:
            return
        self._take()  # what came after the last round
        total = {
            "wall_seconds": sum(row["wall_seconds"] for row in self.rounds),
            "seconds": self._total("seconds"),
            "driver": self._total("driver"),
            "shares": self.shares,
        }
        whole = {"categories": CATEGORIES, "total": total, "rounds": self.rounds, "spans_left_out": self.left_out}
        (self.directory / "profile.json").write_text(json.dumps(whole, indent=2) + "\n")
        (self.directory / "trace.json").write_text(json.dumps(self.events) + "\n")


def _booked(whole: Whole, spans: list[Span], answers: list[Arrived]) -> tuple[Seconds, dict[str, Seconds]]:
    """Seconds by category in a round: of the driver, and of each worker by name.

    While the driver waits and nobody works, what is asked or answered is on its way: that is transfer, for all of them. So is,
    for a worker, the time from being asked to beginning. Otherwise a worker outside its calls is idle.
    """
    waits = [(s.start, s.start + s.seconds) for s in spans if s.category == "waits"]
    calls = [
        (answer, w.span.start, w.span.start + w.span.seconds, w.booked)
        for answer in answers
        for w in answer.record.wholes
    ]
    alone = _outside(waits, [(begin, end) for _, begin, end, _ in calls])
    driver = _sum([whole.booked, {"transfer": alone, "waits": -alone}])
    back = _outside(waits, [(min(answer.asked, begin), end) for answer, begin, end, _ in calls])
    workers: dict[str, Seconds] = {}
    for answer, begin, _, booked in calls:
        before = workers.get(answer.worker, {"transfer": back})
        workers[answer.worker] = _sum([before, booked, {"transfer": begin - answer.asked}])
    for mine in workers.values():
        mine["idle"] = whole.span.seconds - sum(mine.values())
    return driver, workers


def _outside(spans: list[tuple[float, float]], others: list[tuple[float, float]]) -> float:
    """The length of `spans`, which are apart, outside all `others`."""
    total, others = 0.0, sorted(others)
    for a, b in spans:
        for begin, end in others:
            if end > a and begin < b:
                total += max(0.0, begin - a)
                a = max(a, min(end, b))
        total += b - a
    return total


def _sum(parts: Iterable[Seconds]) -> Seconds:
    """In the order of `CATEGORIES`, without those that took no time."""
    parts = list(parts)
    sums = {name: sum(part.get(name, 0.0) for part in parts) for name in CATEGORIES}
    return {name: seconds for name, seconds in sums.items() if seconds}
