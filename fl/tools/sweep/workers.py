"""Execute the runs of a sweep: one after another in this process, or several at a time, each in its own process.

A process runs one run after another and asks after each round whether the run goes on. It ends when this process ends,
however that happens, so that a run directory has never two writers.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from fl.errors import MachineError
from fl.execution.workers.ray_pool import keep_workers
from fl.tools.sweep.runs import SweepRun
from fl.tracking.callback import Row

WAIT_SECONDS = 0.5  # between two looks at signals
STOP_SECONDS = 10  # for a process to end by itself


class Jobs(Protocol):
    """The runs to execute, and what becomes of them."""

    def next(self) -> SweepRun | None:
        """The next run to execute; None if there is none at present, or no more."""

    def goes_on(self, run: SweepRun, row: Row) -> bool:
        """Whether a run goes on after a round."""

    def ended(self, run: SweepRun, reason: str) -> None:
        """Learn why a run ended."""


class Control(Protocol):
    """Signals, as fl/cli/interrupts.py handles them."""

    @property
    def requested(self) -> bool:
        """Whether a signal asks to stop after the round."""

    def rounds_begin(self) -> None:
        """Let signals wait for the end of a round."""


class Uncontrolled:
    """Control of a sweep that no signal stops."""

    requested = False

    def rounds_begin(self) -> None:
        """Do nothing."""


def execute(jobs: Jobs, number: int, control: Control, progress: bool | None) -> None:
    """Execute runs, `number` at a time.

    Raises:
        KeyboardInterrupt: a signal asked to stop; the runs under way were interrupted after a round.
    """
    if number == 1:
        _one_after_another(jobs, control, progress)
    else:
        _in_processes(jobs, number, control)
    if control.requested:
        raise KeyboardInterrupt


def _one_after_another(jobs: Jobs, control: Control, progress: bool | None) -> None:
    with keep_workers():
        while not control.requested and (run := jobs.next()) is not None:
            goes_on = partial(jobs.goes_on, run)
            reason = run.execute(goes_on, lambda: control.requested, control.rounds_begin, progress)
            if reason != "interrupted":
                jobs.ended(run, reason)


def _in_processes(jobs: Jobs, number: int, control: Control) -> None:
    idle: list[_Process] = []
    busy: dict[_Process, SweepRun] = {}
    try:
        while True:
            while len(busy) < number and not control.requested and (run := jobs.next()) is not None:
                process = idle.pop() if idle else _Process()
                busy[process] = run
                process.connection.send(run)
            if not busy:
                return
            control.rounds_begin()
            for process in _with_news(busy):
                _take_news(process, busy, idle, jobs, control)
    finally:
        for process in (*idle, *busy):
            process.close()


def _with_news(busy: Iterable[_Process]) -> Iterator[_Process]:
    """Processes that have sent something, or have died."""
    ready = wait([process.connection for process in busy], WAIT_SECONDS)
    return iter([process for process in busy if process.connection in ready])


def _take_news(
    process: _Process, busy: dict[_Process, SweepRun], idle: list[_Process], jobs: Jobs, control: Control
) -> None:
    """Answer a process that asks, or take the end of its run."""
    run = busy[process]
    try:
        kind, value = process.connection.recv()
    except (EOFError, OSError):
        raise MachineError(f"the process of {run.out} died; the same command goes on") from None
    if kind == "row":
        process.connection.send((jobs.goes_on(run, value), control.requested))
        return
    idle.append(process)
    del busy[process]
    if kind == "error":
        raise value
    if value != "interrupted":
        jobs.ended(run, value)


class _Process:
    """A process that executes runs."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process: Any = context.Process(target=_serve, args=(theirs,))
        self._process.start()
        theirs.close()

    def close(self) -> None:
        """End the process; a run under way loses the round that it computes."""
        self.connection.close()
        self._process.join(STOP_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(connection: Connection) -> None:
    """Execute the runs that come over the connection, until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C reaches the parent, which decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with keep_workers():
        while True:
            try:
                run: SweepRun = connection.recv()
            except EOFError:
                return
            connection.send(_execute(run, connection))


def _execute(run: SweepRun, connection: Connection) -> tuple[str, Any]:
    """("end", why the run ended) or ("error", exception)."""
    interrupted = False

    def goes_on(row: Row) -> bool:
        nonlocal interrupted
        connection.send(("row", row))
        keeps, interrupted = connection.recv()
        return bool(keeps)

    try:
        return "end", run.execute(goes_on, lambda: interrupted)
    except Exception as error:
        return "error", error


def _end_with_parent() -> None:
    """End this process when its parent ends, also by kill -9."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
