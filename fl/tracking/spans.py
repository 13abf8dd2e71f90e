"""Spans: timed sections of code in the driver and in every worker, for `fl run --profile`.

Spans nest. A span's own time, without the spans inside it, belongs to its category, so the categories of an outermost
span add up to its length. Workers send their spans along with their results. Without a `Profile` nothing is recorded:
`span` returns an empty context, and `timed_items` and `timed_calls` return their argument.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

CATEGORIES = {
    "data": "gather batches and client states, write states",
    "compute": "local training",
    "encode": "transforms and codecs, both directions",
    "reduce": "lift and merge updates",
    "evaluate": "metrics of models",
    "server": "strategy, sampling, bookkeeping, commits",
    "transfer": "dispatches and results: pack, send, unpack",
    "waits": "the driver waits for workers",
    "idle": "workers without work",
}
MAX_SENT = 20_000  # spans that a worker sends with one result; more are only counted
CLOCK_READINGS = 5  # readings of a remote clock, of which the quickest counts

Seconds = dict[str, float]  # by category
Item = TypeVar("Item")
Function = TypeVar("Function", bound=Callable[..., Any])


class Span(NamedTuple):
    """A timed section.

    Args:
        category: a key of `CATEGORIES`.
        name: what is timed.
        detail: number of the round or task; None for neither.
        start: seconds on the clock `time.perf_counter`.
        seconds: length.
    """

    category: str
    name: str
    detail: int | None
    start: float
    seconds: float


class OutermostSpan(NamedTuple):
    """A span that is in no other span, and the seconds of each category in it."""

    span: Span
    by_category: Seconds


class SpanRecord(NamedTuple):
    """Spans that a process recorded since it was last asked; `left_out` counts those that were not kept."""

    outermost: list[OutermostSpan]
    spans: list[Span]
    left_out: int


class WorkerRecord(NamedTuple):
    """Spans of a worker's call in the driver's time; `asked` is when the driver made the call."""

    worker: str
    asked: float
    record: SpanRecord


class _Recorder:
    """Spans of this process, and the records that workers sent."""

    def __init__(self) -> None:
        self.open: list[_OpenSpan] = []
        self.outermost: list[OutermostSpan] = []
        self.spans: list[Span] = []
        self.by_category: Seconds = {}
        self.from_workers: list[WorkerRecord] = []

    def close(self, span: Span, inside: float) -> None:
        self.by_category[span.category] = self.by_category.get(span.category, 0.0) + span.seconds - inside
        self.spans.append(span)
        if self.open:
            self.open[-1].inside += span.seconds
        else:
            self.outermost.append(OutermostSpan(span, self.by_category))
            self.by_category = {}

    def take(self, limit: int | None = None) -> SpanRecord:
        outermost, spans, self.outermost, self.spans = self.outermost, self.spans, [], []
        return SpanRecord(outermost, spans[:limit], len(spans) - len(spans[:limit]))


class _OpenSpan:
    """Context of a span; `inside` adds up the seconds of the spans in it."""

    __slots__ = ("recorder", "category", "name", "detail", "start", "inside")

    def __init__(self, recorder: _Recorder, category: str, name: str, detail: int | None):
        self.recorder, self.category, self.name, self.detail = recorder, category, name, detail

    def __enter__(self) -> None:
        self.inside = 0.0
        self.recorder.open.append(self)
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self.start
        self.recorder.open.pop()
        self.recorder.close(Span(self.category, self.name, self.detail, self.start, seconds), self.inside)


_recorder: _Recorder | None = None
_NO_SPAN = contextlib.nullcontext()
_END = object()


# -- in every process -------------------------------------------------------------------------------------------------
def record_spans(on: bool) -> None:
    """Start to record spans in this process, without those recorded before, or stop."""
    global _recorder
    _recorder = _Recorder() if on else None


def recording() -> bool:
    """Whether this process records spans."""
    return _recorder is not None


def span(category: str, name: str, detail: int | None = None) -> contextlib.AbstractContextManager[None]:
    """Context whose time belongs to a category of `CATEGORIES`."""
    return _NO_SPAN if _recorder is None else _OpenSpan(_recorder, category, name, detail)


def timed_items(category: str, name: str, items: Iterable[Item]) -> Iterable[Item]:
    """The items; a span covers the making of each."""
    return items if _recorder is None else _timed_items(category, name, iter(items))


def _timed_items(category: str, name: str, items: Iterator[Item]) -> Iterator[Item]:
    while True:
        with span(category, name):
            item = next(items, _END)
        if item is _END:
            return
        yield item  # type: ignore[misc]  # the sentinel has returned above


def timed_calls(category: str, name: str, function: Function) -> Function:
    """The function; a span covers each call."""
    if _recorder is None:
        return function

    def call(*arguments: Any) -> Any:
        with span(category, name):
            return function(*arguments)

    return call  # type: ignore[return-value]  # the same signature, called by position


def take_record(limit: int | None = None) -> SpanRecord | None:
    """Spans since the last call, at most `limit` of them; None if this process does not record."""
    return None if _recorder is None else _recorder.take(limit)


# -- in the driver ----------------------------------------------------------------------------------------------------
def add_worker_record(worker: str, asked: float, record: SpanRecord | None, shift: float = 0.0) -> None:
    """Keep the spans that a worker sent.

    Args:
        worker: name of the worker.
        asked: driver's time of the call that the worker answered.
        record: its spans in its own time; None if it does not record.
        shift: driver's clock minus the worker's, in seconds.
    """
    if _recorder is None or record is None:
        return
    if shift:
        outermost = [OutermostSpan(_moved(each.span, shift), each.by_category) for each in record.outermost]
        record = SpanRecord(outermost, [_moved(span, shift) for span in record.spans], record.left_out)
    _recorder.from_workers.append(WorkerRecord(worker, asked, record))


def take_worker_records() -> list[WorkerRecord]:
    """The worker records since the last call."""
    if _recorder is None:
        return []
    records, _recorder.from_workers = _recorder.from_workers, []
    return records


def _moved(span: Span, shift: float) -> Span:
    return span._replace(start=span.start + shift)


def clock_shift(ask: Callable[[], float], clock: Callable[[], float] = time.perf_counter) -> float:
    """Our clock minus a remote clock, in seconds.

    Of several readings the quickest counts; the remote clock is taken to be read half-way.

    Args:
        ask: reads the remote clock.
        clock: reads ours.
    """
    readings = []
    for _ in range(CLOCK_READINGS):
        before = clock()
        remote = ask()
        after = clock()
        readings.append((after - before, (before + after) / 2 - remote))
    return min(readings)[1]
