"""Errors as one line on stderr, or a few for an error in a user's own file, and an exit code.

0    success
1    the command failed: a client's error, a law that does not hold, a benchmark below its bar
2    a mistake in the configuration or the command
130  stopped by Ctrl-C or SIGTERM

With --json the error is on stdout, too, as one JSON object (json_output.py).
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Collection, Iterator
from typing import NoReturn

import click
import typer

from fl.cli.interrupts import stopped
from fl.cli.json_output import print_json_error, results
from fl.errors import ClientError, ConfigError, UnknownName

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
MORE = "--traceback shows all calls"


@contextlib.contextmanager
def report_errors(traceback: bool = False, interrupted: str = "stopped") -> Iterator[None]:
    """Turn an exception into `error: ...` on stderr and exit code 1 or 2, or after a signal 130.

    With `traceback` or FL_TRACEBACK=1 the exception passes through unchanged. `interrupted`: the line after a signal.
    """
    try:
        yield
    except typer.Exit:
        raise
    except BaseException as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():  # as in `fl list | head`
            raise typer.Exit from None
        if stopped() or isinstance(error, KeyboardInterrupt):
            fail(interrupted, EXIT_INTERRUPTED)
        if not isinstance(error, Exception):  # a user's module calls sys.exit while it is imported
            error = RuntimeError(f"{type(error).__name__}({error}) was raised").with_traceback(error.__traceback__)
        if traceback or os.environ.get("FL_TRACEBACK") == "1":
            raise error
        code = EXIT_USAGE if isinstance(error, (ConfigError, UnknownName)) else EXIT_FAILED
        fail(f"error: {in_words(error)}", code, error.path if isinstance(error, ConfigError) else "")


def fail(line: str, code: int, key: str = "") -> NoReturn:
    """Say why the command ends, on stderr and with --json also on stdout, and end it with this exit code.

    `key`: the configuration key that is wrong, or "".
    """
    say(line)
    print_json_error(line.removeprefix("error: "), code, key)
    raise typer.Exit(code) from None


@contextlib.contextmanager
def usage_as_json() -> Iterator[None]:
    """With --json, print a mistake in the command line as JSON on stdout; typer prints it on stderr as ever."""
    try:
        yield
    except click.UsageError as error:
        print_json_error(error.format_message(), EXIT_USAGE)
        raise


def _reader_is_gone() -> bool:
    """Whether the reader of the results is gone. What is still to be written is then discarded."""
    poll = select.poll()
    descriptor = results().fileno()
    poll.register(descriptor, select.POLLOUT)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return True


def in_words(error: Exception) -> str:
    """An error as text. An error in a user's own file begins with the file, the line and the source line."""
    from fl.user_code import explain, is_deliberate

    if isinstance(error, ClientError):
        place = f"{error.user}\n{error.place}\n{MORE}" if error.user else ""
        # the first line names client, round and stage; the rest is the traceback
        return place or str(error).partition("\n")[0]
    if isinstance(error, (ConfigError, UnknownName)):
        cause = error.__cause__
        place = explain(cause) if cause is not None and not is_deliberate(cause) else ""
        return f"{place}\n{error}\n{MORE}" if place else str(error)
    place = explain(error)
    if place:
        return f"{place}\n{MORE}"
    text = str(error).partition("\n")[0] or repr(error)
    return text if type(error).__module__.startswith("fl.") else f"{type(error).__name__}: {text}"


@contextlib.contextmanager
def usage_errors(*more: type[Exception]) -> Iterator[None]:
    """Turn a ValueError, a RecursionError, or an exception of the types `more`, into a `ConfigError`: exit code 2.

    For reports: what they complain about is an argument of the command.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, (ValueError, RecursionError, *more)):
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
