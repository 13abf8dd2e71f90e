"""Private folders for files that processes of one run share: mode 0700, an unpredictable name, locked while in use.

Every process that uses a folder holds a shared lock on it. The system releases the lock when the process ends. A folder
without a lock has been abandoned, and is removed when the next folder beside it is made. Process ids cannot tell this:
two containers with one /dev/shm count them separately.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
from pathlib import Path

NAME = re.compile(r"fl-[0-9a-f]{16}(-[0-9a-f]{8})?")
MEMORY = Path("/dev/shm")


def new_name() -> str:
    """Return an unpredictable name for a private folder."""
    return f"fl-{secrets.token_hex(8)}"


def memory_folder() -> Path:
    """Return the folder of the memory file system if there is one, else that of temporary files."""
    return MEMORY if os.access(MEMORY, os.W_OK | os.X_OK) else disk_folder()


def disk_folder() -> Path:
    """Return the folder of temporary files."""
    return Path(tempfile.gettempdir())


class PrivateFolder:
    """A folder that only this user can enter; created if it does not exist.

    Args:
        parent: folder that it lies in.
        name: see `new_name`. On another node it may end in "-" and eight hexadecimal digits.
    """

    def __init__(self, parent: Path, name: str):
        assert NAME.fullmatch(name)
        self.path = parent / name
        remove_abandoned(parent)
        while True:
            with contextlib.suppress(FileExistsError):
                self.path.mkdir(0o700)
            with contextlib.suppress(FileNotFoundError):  # another process took it for abandoned: make it again
                self._lock = _open(self.path)
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(self._lock, fcntl.LOCK_SH)
                if _is(self.path, self._lock):
                    return
                os.close(self._lock)

    def remove(self) -> None:
        """Delete the folder with its files."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.leave()

    def leave(self) -> None:
        """Release the lock; the folder stays until the next one is made."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def remove_abandoned(parent: Path) -> None:
    """Delete private folders of this user that no process uses."""
    for path in parent.glob("fl-*"):
        if not NAME.fullmatch(path.name):
            continue
        try:
            lock = _open(path)
        except OSError:  # another user's, or removed in the meantime
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(path, lock):
                shutil.rmtree(path, ignore_errors=True)
        except OSError:  # in use, or on a file system without locks
            pass
        finally:
            os.close(lock)


def _open(path: Path) -> int:
    """Open a private folder; a link, another user's folder or one with other rights is refused."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    status = os.fstat(folder)
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        os.close(folder)
        raise PermissionError(f"{path} is not a private folder of this user")
    return folder


def _is(path: Path, folder: int) -> bool:
    """Whether a path still leads to an open folder."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(folder))
    except FileNotFoundError:
        return False
