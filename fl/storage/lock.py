"""One writer per run directory: a lock that the kernel releases when its process ends, however it ends.

The file `run.lock` says who holds the lock. It stays in the directory and marks it as one of ours. Readers (`fl
compare`, `fl ledger`, `fl digest`, ...) take no lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path

from fl.errors import ConfigError
from fl.storage import files

LOCK = "run.lock"
log = logging.getLogger(__name__)


# directories whose lock the present thread holds
_held: ContextVar[frozenset[Path]] = ContextVar("_held", default=frozenset())


@contextlib.contextmanager
def locked(directory: Path, again: bool = True) -> Iterator[None]:
    """Hold the lock of a run directory, which is made if needed.

    Args:
        directory: the run directory.
        again: whether the present thread may take a lock that it holds already.

    Raises:
        ConfigError: another process, or another thread of this one, holds it.
    """
    key = directory.resolve()
    if key in _held.get():
        if not again:
            raise ConfigError("out", f"{directory} is in use by a loop over fl.rounds; close() the loop first")
        yield
        return
    made = not directory.exists()
    descriptor = _taken(directory)
    _held.set(_held.get() | {key})
    try:
        yield
    except BaseException:
        _leave_nothing(directory, made)
        raise
    finally:
        _held.set(_held.get() - {key})
        os.close(descriptor)  # also releases the lock


def _taken(directory: Path) -> int:
    """Take the lock; return the descriptor that holds it."""
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = files.open_file(directory / LOCK, os.O_RDWR | os.O_CREAT)
        try:
            _take(descriptor, directory)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.lstat(directory / LOCK)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # a run that failed has deleted the file in the meantime


def _leave_nothing(directory: Path, made: bool) -> None:
    """Delete the lock, and a directory that was made for it, if a run failed before it wrote anything."""
    with contextlib.suppress(OSError):
        if os.listdir(directory) == [LOCK]:
            (directory / LOCK).unlink()
            if made:
                directory.rmdir()


def _take(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError("out", f"{directory} is in use by {_holder(descriptor)}; wait until it ends") from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        log.warning(
            "out: the file system of %s has no locks (%s); make sure that no other process writes to this run",
            directory,
            error.strerror,
        )
    me = {"pid": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, (json.dumps(me) + "\n").encode(), 0)


def _holder(descriptor: int) -> str:
    """Who holds the lock, in words."""
    try:
        who = json.loads(os.pread(descriptor, 1000, 0))
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    except (ValueError, KeyError, TypeError):  # it has taken the lock and not written yet
        return "another process"
