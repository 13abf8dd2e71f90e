"""Arrays in mapped files of this process, in the temporary folder (TMPDIR). Workers on the same machine map them, too.

A file is deleted when nothing refers to its array any more, at the latest when the process ends. Files of processes
that were killed are deleted when the next file is made.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import re
import secrets
import socket
import tempfile
import weakref
from pathlib import Path

import numpy as np

NAME = "fl-rows"


def temporary_array(shape: tuple[int, ...], dtype: np.dtype) -> np.memmap:
    """Return a new array of zeros in a file. The space on disk is reserved at once.

    Raises:
        ValueError: there is no room.
    """
    folder, size = Path(tempfile.gettempdir()), max(math.prod(shape) * dtype.itemsize, 1)
    _remove_leftovers(folder)
    path = folder / f"{NAME}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        if hasattr(os, "posix_fallocate"):  # a full disk would kill the process later, when it writes to the map
            os.posix_fallocate(file, 0, size)
        else:
            os.ftruncate(file, size)
    except OSError as error:
        path.unlink()
        raise ValueError(
            f"an array {shape} of {dtype} needs {size / 1e9:.2g} GB in {folder}: {error.strerror}; "
            "set TMPDIR to a folder with room"
        ) from None
    finally:
        os.close(file)
    array = np.memmap(path, dtype, "r+", 0, shape)
    weakref.finalize(_map_of(array), _delete, path, os.getpid())
    return array


def is_temporary(array: np.ndarray) -> bool:
    """Return whether an array, or the array that it is a part of, lies in a file of `temporary_array`."""
    return isinstance(array, np.memmap) and Path(str(array.filename)).name.startswith(f"{NAME}-")


def converted(array: np.ndarray, dtype: type) -> np.ndarray:
    """Return an array of another type: in a new temporary file, if `array` is in one, else in memory."""
    if not is_temporary(array):
        return array.astype(dtype)
    new = temporary_array(array.shape, np.dtype(dtype))
    new[:] = array
    new.flags.writeable = False
    return new


def _map_of(array: np.memmap) -> mmap.mmap:
    return array._mmap  # type: ignore[attr-defined]  # numpy has no public name for it


def _delete(path: Path, process: int) -> None:
    if os.getpid() == process:  # not in a forked process
        path.unlink(missing_ok=True)


def _remove_leftovers(folder: Path) -> None:
    """Delete the files of processes on this machine that have ended."""
    for path in folder.glob(f"{NAME}-*"):
        owner = re.fullmatch(rf"{NAME}-{re.escape(socket.gethostname())}-(\d+)-[0-9a-f]+", path.name)
        if owner and not _is_alive(int(owner[1])):
            with contextlib.suppress(OSError):
                path.unlink()


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        pass
    return True
