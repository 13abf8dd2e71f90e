"""The output of commands with --json: one JSON value on stdout, and nothing else.

Users' code may print, and so may the libraries it calls, from Python or from C. The option --json therefore points file
descriptor 1 at stderr before anything runs, and `print_json` writes to the original stdout.

An error is a JSON value, too: {"error": {"message": ..., "key": ..., "exit_code": ...}}, where `key` is the
configuration key that is wrong, or "".
"""

from __future__ import annotations

import io
import json
import os
import sys
from typing import Any, TextIO

import typer

_stdout: TextIO | None = None  # the original stdout; None without --json
_printed = False  # whether the JSON value is out


def reserve_stdout(context: typer.Context, as_json: bool) -> bool:
    """Keep stdout for `print_json`; everything else that is printed goes to stderr. The callback of --json."""
    global _stdout, _printed
    _printed = False
    if not as_json or context.resilient_parsing:
        return as_json
    sys.stdout.flush()
    if _descriptor(sys.stdout) == 1:
        _stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # to the end of the process: a user's code may also print at exit
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)
    else:  # a program that calls the command has replaced stdout
        _stdout, sys.stdout = sys.stdout, sys.stderr
        context.call_on_close(_give_back)
    return as_json


def print_json(value: Any, indent: int | None = None) -> None:
    """Print a value as JSON on the original stdout."""
    global _printed
    _printed = True
    print(json.dumps(value, indent=indent), file=results(), flush=True)


def results() -> TextIO:
    """The stream of results: the original stdout."""
    return _stdout or sys.stdout


def print_json_error(message: str, exit_code: int, key: str = "") -> None:
    """Print an error as JSON, if the command was called with --json and has printed nothing yet."""
    if (_stdout is not None or "--json" in sys.argv[1:]) and not _printed:
        print_json({"error": {"message": message, "key": key, "exit_code": exit_code}})


def _give_back() -> None:
    global _stdout
    assert _stdout is not None
    sys.stdout, _stdout = _stdout, None


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None
