"""Files that only grow, with a checksum of everything in them.

file = GrowingFile(path, mark)     continues after a committed `mark`; None: a new file
file.cut()                         cuts off what was not committed
file.append(data)
file.mark                          the length and the checksum, for the record of a commit
"""

from __future__ import annotations

from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import xxhash

from fl.errors import MachineError
from fl.storage import files

_BLOCK = 1 << 20  # bytes that are read at once


class Damaged(MachineError):
    """A file of a run is lost, or does not hold what was written to it."""


@dataclass(frozen=True)
class Mark:
    """The beginning of a growing file that a commit counts on.

    Attributes:
        length: its size in bytes.
        checksum: XXH3 (64 bits) of these bytes, in hexadecimal digits.
    """

    length: int
    checksum: str


class GrowingFile:
    """A file in a run directory that only grows. Writes reach the operating system at once.

    Args:
        path: the file.
        mark: continue after this mark; the file is changed by `cut` or the first `append`. None makes a new file.

    Raises:
        Damaged: the file does not begin with the bytes of `mark`.
    """

    def __init__(self, path: Path, mark: Mark | None = None):
        self.path = path
        self._sum, self.length = xxhash.xxh3_64(), 0
        self._file: FileIO | None = None
        if mark is None:
            self.cut()
        else:
            self._sum, self.length = _checked(path, mark), mark.length

    @property
    def mark(self) -> Mark:
        """What the file holds now."""
        return Mark(self.length, self._sum.hexdigest())

    def cut(self) -> FileIO:
        """Cut off what the file holds after the mark; return the open file."""
        if self._file is None:
            self._file = files.open_at(self.path, self.length)
        return self._file

    def append(self, data: bytes | memoryview) -> None:
        """Write `data` to the end."""
        view, file = memoryview(data), self.cut()
        self._sum.update(view)
        while view:  # an unbuffered write may be partial
            written = file.write(view)
            view, self.length = view[written:], self.length + written

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _checked(path: Path, mark: Mark) -> xxhash.xxh3_64:
    """Return the checksum of the first bytes of a file, which has to be that of `mark`."""
    found, left = xxhash.xxh3_64(), mark.length
    if not path.is_file():
        raise Damaged(f"{path} is missing")
    with open(path, "rb") as file:
        while left and (block := file.read(min(left, _BLOCK))):
            found.update(block)
            left -= len(block)
    if left:
        raise Damaged(f"{path} has {mark.length - left} bytes, but {mark.length} were committed")
    if found.hexdigest() != mark.checksum:
        raise Damaged(f"{path} is damaged: the checksum of its first {mark.length} bytes differs")
    return found
