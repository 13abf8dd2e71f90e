"""Where machine code is kept between processes: a private folder in the user's cache.

    $XDG_CACHE_HOME/fl/machine-code/KEY/    ~/.cache without XDG_CACHE_HOME

KEY is a hash of the source files, constants of other files, the processor, and versions.

numba reads these files with pickle, which can run any code, so the folder must belong to this user and be closed to all
others (mode 0700). The place of the source files is no part of the key: all checkouts with the same files share an
entry. Nothing here imports numba, except `keep`.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import stat
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fl.execution.training import chunk
from fl.models import dropout, normalise
from fl.tensors import random
from fl.tensors.params import ALIGNMENT

TRIED = ("0.68.",)  # versions of numba whose machine code needs no more than numba's runtime
_OTHERS = (Path(dropout.__file__), Path(normalise.__file__), Path(random.__file__))
SOURCES = (*sorted(Path(__file__).parent.glob("*.py")), *_OTHERS)
# numbers of other files that are compiled in
CONSTANTS = (ALIGNMENT, chunk.BATCH, chunk.COUNTS, chunk.FIRST, chunk.SLOTS, chunk.SOURCE, chunk.TARGET, chunk.TERMS)

log = logging.getLogger(__name__)


class NotPrivate(OSError):
    """A folder that another user can change or read."""


def folder() -> Path:
    """Return the folder of all machine code of this user. It is created if it does not exist.

    Raises:
        NotPrivate: it belongs to another user, is open to others, or is a link.
        OSError: it cannot be created.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    cache = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
    cache.mkdir(parents=True, exist_ok=True)
    path = cache
    for name in ("fl", "machine-code"):
        path /= name
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise NotPrivate(f"{path} is not a folder that only this user can open; remove it, or give it mode 0700")
    return path


@functools.cache
def key() -> str:
    """Return a hash of everything that the machine code depends on."""
    return key_of(b"".join(source.read_bytes() for source in SOURCES) + repr(CONSTANTS).encode())


def key_of(source: bytes) -> str:
    """Return a hash of source text and constants, the processor, and the versions of Python and of the compiler."""
    from llvmlite import binding

    machine = (binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten(), sys.version)
    parts = (*machine, version("numba"), version("llvmlite"), hashlib.sha256(source).hexdigest())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def is_cached(module: str) -> bool:
    """Whether the machine code of a module of this folder, such as "clients", was compiled for this processor."""
    try:
        return any((folder() / key()).glob(f"{module}.*.nbi"))
    except OSError:
        return False


def keep(dispatcher: Any) -> None:
    """Let a function that numba has not compiled yet keep its machine code in the folder.

    If there is no private folder, it is compiled in each process, and a warning says so.
    """
    try:
        place = folder() / key()
        place.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        log.warning("machine code is compiled in each process (half a minute): %s", error)
        return
    dispatcher._cache = _cache(place)(dispatcher.py_func)


def _cache(place: Path) -> Callable[[Any], Any]:
    """Return a class of numba caches whose files lie in `place`."""
    from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator
    from numba.core.runtime import rtsys

    class Locator(_CacheLocator):
        """Finds the folder. Its name stands for the source, which numba would compare by place and time."""

        def get_cache_path(self) -> str:
            return str(place)

        def get_source_stamp(self) -> str:
            return place.name

        def get_disambiguator(self) -> str:
            return ""

        @classmethod
        def from_function(cls, py_func: Any, py_file: str) -> Locator:
            return cls()

    class Entry(CompileResultCacheImpl):
        """Writes and reads compiled functions."""

        _locator_classes: Any = [Locator]

    class Cache(FunctionCache):
        """The cache of one function."""

        _impl_class = Entry

        def load_overload(self, sig: Any, target_context: Any) -> Any:
            """Return the compiled function, or None.

            numba's own method first imports all that compiling needs, half a second. Machine code needs the runtime
            for its arrays only. This was tried with the versions `TRIED`; others take numba's way.
            """
            if not version("numba").startswith(TRIED):
                return super().load_overload(sig, target_context)
            rtsys.initialize(target_context)
            return self._load_overload(sig, target_context)

    return Cache
