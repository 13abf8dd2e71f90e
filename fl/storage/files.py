"""Write only to regular files and real folders of a run directory, which may come from a stranger.

A link in a run directory, such as `scratch -> ~/photos` or `metrics.jsonl -> ~/thesis.tex`, would have a resumed run
delete or cut somebody's files. Every file and folder below a run directory is made, opened, replaced and deleted with
these functions. They refuse links (symbolic ones, and hard links to a file that would be changed in place), pipes and
devices. The run directory itself may be a link.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from fl.errors import ConfigError


def make_folder(path: Path) -> Path:
    """Make a folder in a run directory, or check that the one there is a real folder; return its path."""
    try:
        path.mkdir()
    except FileExistsError:
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise _refusal(path, path.lstat()) from None
    return path


def open_file(path: Path, flags: int) -> int:
    """Open a file in a run directory as `os.open` does; return the descriptor. New files get the user's umask.

    Args:
        path: the file.
        flags: flags of `os.open`, such as os.O_WRONLY | os.O_CREAT | os.O_APPEND.
    """
    try:
        # a pipe would block without O_NONBLOCK; the flag means nothing for regular files
        descriptor = os.open(path, flags & ~os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError:
        if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
            raise _refusal(path, path.lstat()) from None
        raise
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        raise _refusal(path, found)
    if flags & os.O_TRUNC:
        os.ftruncate(descriptor, 0)
    return descriptor


def read_at(descriptor: int, into: memoryview, offset: int) -> int:
    """Read bytes from `offset` on; return how many there were, fewer than `into` has if the file ends before."""
    count, found = 0, len(into)
    while found and count < len(into):  # one call reads 2 GiB at most
        found = os.preadv(descriptor, [into[count:]], offset + count)
        count += found
    return count


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> int:
    """Write bytes from `offset` on; return where they end."""
    while len(data):  # a write may be partial: a disk that is nearly full, or more than 2 GiB
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
    return offset


def open_at(path: Path, length: int) -> FileIO:
    """Open a file in a run directory to continue it after its first `length` bytes; the rest is cut off.

    The file is unbuffered. A new one is made if there is none. The caller has checked the first bytes (growing.py).
    """
    descriptor = open_file(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(descriptor, length)
    file = FileIO(descriptor, "r+")
    file.seek(length)
    return file


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the path of a new file to write. At the end it takes the place of `path` in one step.

    Readers see either the old or the new content. The new file gets the user's umask, also if the writer makes files
    that only their owner can read, as safetensors does. After an error `path` is as before.
    """
    part = path.with_name(f"{path.name}.part")
    remove(part)
    descriptor = open_file(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
    os.close(descriptor)
    try:
        yield part
        os.chmod(part, mode)
        os.replace(part, path)
    except BaseException:
        remove(part)
        raise


def write_file(path: Path, content: str | bytes) -> None:
    """Write a whole file in a run directory; it takes the place of an older one in one step."""
    with replacing(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def remove(path: Path) -> None:
    """Delete a file of a run directory if there is one. Of a link, the link goes and its target stays."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def remove_folder(path: Path) -> None:
    """Delete a folder of a run directory with everything in it, if there is one. A link is refused.

    Links inside are deleted, their targets stay.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise _refusal(path, path.lstat())
        shutil.rmtree(path)


def _refusal(path: Path, found: os.stat_result) -> ConfigError:
    kinds = (
        (stat.S_ISLNK, f"a link to {_target(path)}"),
        (stat.S_ISDIR, "a folder, not a file"),
        (stat.S_ISREG, "a file with several names (hard links)" if found.st_nlink > 1 else "a file, not a folder"),
    )
    what = next((words for matches, words in kinds if matches(found.st_mode)), "a pipe, a socket or a device")
    return ConfigError(
        "out", f"{path} is {what}; fl writes only to files and folders of its own. Copy the run: cp -rL OLD NEW"
    )


def _target(path: Path) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(path)
    return "another file"
