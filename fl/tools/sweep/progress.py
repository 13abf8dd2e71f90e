"""How far a sweep is: k of n runs, and the time left, estimated from the runs that this command has executed."""

from __future__ import annotations

import time
from collections.abc import Callable

Say = Callable[[str], None]


class Progress:
    """Counts runs and prints a line after each.

    Args:
        say: prints a line.
        total: number of runs of the sweep; with a search that stops trials early, the most there can be.
        jobs: number of runs at a time.
        clock: seconds.
    """

    def __init__(self, say: Say, total: int, jobs: int = 1, clock: Callable[[], float] = time.monotonic):
        self._say, self._total, self._jobs, self._clock = say, total, jobs, clock
        self._known = 0  # finished runs, also those of earlier commands
        self._executed = 0
        self._start: float | None = None
        self._first = 0.0  # when the first run ended: it also loads packages and starts processes

    def reused(self) -> None:
        """Count a run that an earlier command has finished."""
        self._known += 1

    def begin(self) -> None:
        """Start the clock at the first run that is executed."""
        if self._start is None:
            self._start = self._clock()
            if self._known:
                self._say(f"[{self._known} of {self._total}] finished before")

    def finished(self, line: str) -> None:
        """Print a line about a run that this command has executed."""
        assert self._start is not None, "begin() comes first"
        self._known += 1
        self._executed += 1
        now = self._clock()
        if self._executed == 1:
            self._first, each = now, (now - self._start) / self._jobs
        else:
            each = (now - self._first) / (self._executed - 1)
        seconds = each * (self._total - self._known)
        left = f"; about {duration(seconds)} left" if self._known < self._total else ""
        self._say(f"[{self._known} of {self._total}] {line}{left}")


def duration(seconds: float) -> str:
    """Seconds in words, rounded.

    >>> duration(4.2), duration(100), duration(8000), duration(200000)
    ('4 s', '2 min', '2.2 h', '2.3 days')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"
