"""Processes that start in a fraction of a second: they are forked from a server with the heavy imports."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from fl.storage import clients

CONTEXT = multiprocessing.get_context("forkserver")
HEAVY = ["experiments.faults.work"]  # what the server imports, see __main__.py
KILLED = -signal.SIGKILL
COMPACT_ABOVE = 1 << 12  # bytes; small, so that the states of short runs are compacted, too. All space is used again


def start(
    function: Callable[..., None], *arguments: Any, log: Path, environment: dict[str, str] | None = None
) -> BaseProcess:
    """Start a process that calls a function. What it prints is appended to the file `log`."""
    process = CONTEXT.Process(target=_child, args=(function, arguments, str(log), environment or {}))
    process.start()
    return process


def end_of(process: BaseProcess, log: Path, seconds: float = 300) -> int:
    """Wait for a process and return its exit code.

    Raises:
        RuntimeError: it hangs, or ends neither well nor by SIGKILL; with the end of its output.
    """
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise RuntimeError(f"a process did not end within {seconds:.0f} s: {tail(log)}")
    if process.exitcode not in (0, KILLED):
        raise RuntimeError(f"exit code {process.exitcode}: {tail(log)}")
    return process.exitcode


def tail(log: Path) -> str:
    """Return the last line of a log."""
    lines = log.read_text(errors="replace").strip().splitlines() if log.is_file() else []
    return lines[-1][:300] if lines else "no output"


def _child(function: Callable[..., None], arguments: tuple[Any, ...], log: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    for descriptor in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666), descriptor)
    sys.stdout, sys.stderr = (open(descriptor, "w", buffering=1, closefd=False) for descriptor in (1, 2))
    clients.COMPACT_ABOVE, clients.REUSE_FROM = COMPACT_ABOVE, 0
    function(*arguments)
