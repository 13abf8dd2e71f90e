"""Ctrl-C and SIGTERM: stop after the round, or at once.

Before round 0 there is nothing to finish: either signal stops at once. Later the first signal asks the run to stop
after the round, and a second Ctrl-C aborts it.
"""

from __future__ import annotations

import os
import signal
from types import FrameType


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
        self._running = True
        signal.signal(signal.SIGTERM, self._handle)  # ray.init replaced the handler

    def _handle(self, number: int, _: FrameType | None) -> None:
        if not self._running or (self.requested and number == signal.SIGINT):
            raise KeyboardInterrupt
        self.requested = True
        # os.write, because the signal may have interrupted a print()
        os.write(2, b"stopping after this round; Ctrl-C again aborts\n")
