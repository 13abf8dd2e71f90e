"""Compressed files that may come from a stranger: a small one can unpack to more than the memory holds.

Sizes are known or bounded before memory is taken. Python objects (pickles) in arrays are never read.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

# what zipfile and NumPy raise for damaged files
DAMAGE = (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, zlib.error, SyntaxError, OSError)
CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def free_memory() -> int:
    """Return the bytes of memory that are free, on the machine and within the limit of the container."""
    free = 1 << 62
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable")))
    for file in CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            free = min(free, int(Path(file).read_text()))
    return free


def require_room(needed: int, path: Path | str, key: str = "path") -> None:
    """Raise a ValueError at `key` if what a file unpacks to, `needed` bytes, does not fit into memory."""
    free = free_memory()
    if needed > free:
        raise ValueError(
            f"{key}: {path} unpacks to {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB of memory are free"
        )


def read_npz(path: Path, *names: str, key: str = "path") -> dict[str, np.ndarray]:
    """Return arrays of an .npz file by name; all of them without `names`.

    Raises:
        ValueError: it is no .npz file, holds Python objects, is damaged, or does not fit into memory. The message
            begins with `key`, the setting that names the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            wanted = [m for m in archive.infolist() if not names or m.filename.removesuffix(".npy") in names]
            require_room(sum(member.file_size for member in wanted), path, key)
            for member in wanted:
                _check_header(archive, member, path, key)
        with np.load(path, allow_pickle=False) as arrays:
            missing = [name for name in names if name not in arrays]
            if missing:
                raise ValueError(f"{key}: {path} has {sorted(arrays)}, and not {missing[0]!r}")
            return {name: arrays[name] for name in names or arrays}
    except (*DAMAGE, ValueError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a place before the file's beginning
            raise
        if str(error).startswith(f"{key}: "):
            raise
        raise ValueError(f"{key}: {path} is damaged or no .npz file: {error}") from None


def _check_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, key: str) -> None:
    """Check that an array is as long as its header says: memory is taken for the header's shape."""
    with archive.open(member) as file:
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
        except ValueError as error:
            raise ValueError(f"{key}: {path}, array {member.filename}: {error}") from None
        if dtype.hasobject:
            raise ValueError(f"{key}: {path} holds Python objects, not arrays of numbers")
        needed, stored = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
        if needed != stored:
            raise ValueError(
                f"{key}: {path} is damaged: array {member.filename} {shape} needs {needed} bytes, it has {stored}"
            )


def read_parquet(path: Path, key: str = "path", columns: Sequence[str] | None = None, words: Sequence[str] = ()) -> Any:
    """Read a .parquet file as a pyarrow table.

    Args:
        path: the file.
        key: key of the configuration, for the message.
        columns: columns to read, default all.
        words: columns of repeated words, which are read as dictionaries.

    Raises:
        ValueError: the table does not fit into memory.
    """
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path, read_dictionary=list(words)) as file:  # read_table imports pandas, 0.3 s
        number = file.metadata.num_columns if columns is None else len(columns)
        require_room(4 * file.metadata.num_rows * number, path, key)  # a constant column takes few bytes in the file
        return file.read(columns=None if columns is None else list(columns))


class _Bounded(io.RawIOBase):
    """Read a compressed file, up to the size of the free memory."""

    def __init__(self, path: Path):
        self.path, self.file, self.left = path, gzip.open(path, "rb"), free_memory()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self.file.readinto(buffer)
        self.left -= count
        if self.left < 0:
            raise ValueError(f"data: {self.path} unpacks to more than the memory that is free")
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


def open_gzip(path: Path) -> IO[bytes]:
    """Open a .gz file for reading; a ValueError is raised once more is read than fits into memory."""
    return io.BufferedReader(_Bounded(path), 1 << 20)


def open_gzip_text(path: Path, newline: str | None = None) -> IO[str]:
    """Open a .gz file of UTF-8 text as `open_gzip` does."""
    return io.TextIOWrapper(open_gzip(path), encoding="utf-8", newline=newline)
