"""Ctrl-C and SIGTERM: stop after the round, or at once.

Before round 0 there is nothing to finish: either signal stops at once, also while packages are imported and data are
read. Later the first signal asks the run to stop after the round, and a second Ctrl-C aborts it.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

_stopped = False  # whether a signal has stopped the command


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """Context in which SIGTERM stops a command as Ctrl-C does."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, _stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def stopped() -> bool:
    """Return whether a signal has stopped the command. Packages may turn the exception into another one."""
    return _stopped


def _stop(number: int, _: FrameType | None) -> None:
    global _stopped
    _stopped = True
    raise KeyboardInterrupt


class Interrupts:
    """Context in which signals stop a run after its round; `requested` says whether one came."""

    def __init__(self) -> None:
        self.requested = False
        self._running = False

    def __enter__(self) -> Interrupts:
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def rounds_begin(self) -> None:
        """From now on a signal lets the round finish."""
        if stopped():  # a package swallowed the exception
            raise KeyboardInterrupt
        self._running = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._running or (self.requested and number == signal.SIGINT):
            _stop(number, frame)
        self.requested = True
        # os.write, because the signal may have interrupted a print()
        os.write(2, b"stopping after this round; Ctrl-C again aborts\n")
