"""Errors as one line on stderr and an exit code.

0    success
1    the command failed: a client's error, a law that does not hold, a benchmark below its bar
2    a mistake in the configuration or the command
130  stopped by Ctrl-C or SIGTERM
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Collection, Iterator

import typer

from fl.errors import ConfigError, UnknownName

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


@contextlib.contextmanager
def report_errors(traceback: bool = False) -> Iterator[None]:
    """Turn an exception into a line `error: ...` on stderr and exit code 1 or 2.

    With `traceback` or FL_TRACEBACK=1 the exception passes through unchanged.
    """
    try:
        yield
    except typer.Exit:
        raise
    except Exception as error:
        if traceback or os.environ.get("FL_TRACEBACK") == "1":
            raise
        usage = isinstance(error, (ConfigError, UnknownName))
        # the first line of a client's error names client, round and stage; the rest is its traceback
        text = str(error) if usage else str(error).partition("\n")[0] or repr(error)
        known = usage or type(error).__module__.startswith("fl.")
        say(f"error: {text}" if known else f"error: {type(error).__name__}: {text}")
        raise typer.Exit(EXIT_USAGE if usage else EXIT_FAILED) from None


@contextlib.contextmanager
def usage_errors(*more: type[Exception]) -> Iterator[None]:
    """Turn a ValueError, or an exception of the types `more`, into a `ConfigError`: exit code 2.

    For reports: what they complain about is an argument of the command.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, (ValueError, *more)):
            raise
        raise ConfigError("", str(error)) from None


def require_one_of(allowed: Collection[str], **options: str) -> None:
    """Require option values out of `allowed`; the option's name is the keyword.

    >>> require_one_of(("md", "csv"), format="html")
    Traceback (most recent call last):
    fl.errors.ConfigError: --format: 'html' is not one of ['md', 'csv']
    """
    for name, value in options.items():
        if value not in allowed:
            raise ConfigError(f"--{name}", f"{value!r} is not one of {list(allowed)}")


def say(text: str) -> None:
    """Print a line on stderr at once."""
    print(text, file=sys.stderr, flush=True)


def log_to_stderr() -> None:
    """Show warnings and errors of the loggers on stderr."""
    import logging

    from rich.console import Console
    from rich.logging import RichHandler

    handler = RichHandler(console=Console(stderr=True), show_time=False, show_path=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
