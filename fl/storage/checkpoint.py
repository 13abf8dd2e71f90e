"""Checkpoints: a tree of values in one safetensors file, with a checksum.

    save(path, tree)       tree = load(path)          the structure is text in the header of the file

The commits of a run are checkpoints in four files, which are written by turns:

    last-0.safetensors .. last-3.safetensors          the newest commits

A commit overwrites neither the commit before it nor the newest one that was written through to the disk. So a killed
process loses at most the commit that it was writing, a damaged file costs one commit, and a power cut costs the commits
of the last second.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fl.storage import files
from fl.storage.growing import Damaged
from fl.tensors.serialise import flatten, raw_bytes, shapes, unflatten
from fl.tensors.trees import Tree

FILES = 4
SYNC_SECONDS = 1.0  # between two commits that are written through to the disk
_DTYPES = {
    **{getattr(torch, f"float{bits}"): f"F{bits}" for bits in (16, 32, 64)},
    **{getattr(torch, f"int{bits}"): f"I{bits}" for bits in (8, 16, 32, 64)},
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def save(path: Path, tree: Tree) -> None:
    """Write `tree` to a file, which takes the place of an older one in one step."""
    with files.replacing(path) as part, open(part, "wb", buffering=0) as file:
        _write(file.fileno(), tree, 0)


def load(path: Path, plain: bool = False) -> Tree:
    """Read the tree in a file; `plain` as in `unflatten`.

    Raises:
        Damaged: the file does not hold what was written.
    """
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata()
            # clone: memory allocated by torch is aligned, and alignment changes the last bits of results
            tensors = [file.get_tensor(name).clone() for name in sorted(file.keys())]
        number, skeleton, checksum = (header[key] for key in ("number", "skeleton", "checksum"))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise Damaged(f"{path} is damaged: {type(error).__name__}: {error}") from error
    forms = [(tensor.dtype, tuple(tensor.shape)) for tensor in tensors]
    if _checksum(number, skeleton, map(raw_bytes, tensors)) != checksum or forms != shapes(skeleton):
        raise Damaged(f"{path} is damaged: its checksum differs")
    return unflatten(skeleton, tensors, plain)


def _write(descriptor: int, tree: Tree, number: int) -> None:
    """Write a tree in the format of safetensors: the size of the header, the header, and the tensors."""
    skeleton, tensors = flatten(tree)
    tensors = [tensor.cpu().contiguous() for tensor in tensors]
    parts = list(map(raw_bytes, tensors))
    checksum = _checksum(str(number), skeleton, parts)
    header: dict[str, object] = {"__metadata__": {"number": str(number), "checksum": checksum, "skeleton": skeleton}}
    largest_first = sorted(range(len(parts)), key=lambda i: -tensors[i].element_size())  # so that all are aligned
    end = 0
    for i in largest_first:
        header[f"{i:06d}"] = _entry(tensors[i], end, end + len(parts[i]))
        end += len(parts[i])
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    _write_all(descriptor, [len(text).to_bytes(8, "little") + text, *(parts[i] for i in largest_first)])


def _entry(tensor: Tensor, start: int, end: int) -> dict[str, object]:
    if tensor.dtype not in _DTYPES:
        raise TypeError(f"a state may hold tensors of {[str(t) for t in _DTYPES]}, got {tensor.dtype}")
    return {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}


def _write_all(descriptor: int, parts: Iterable[bytes | memoryview]) -> None:
    """Write parts from the beginning of a file, and cut off what it held after them."""
    end = 0
    for part in parts:
        end = files.write_at(descriptor, memoryview(part), end)
    os.ftruncate(descriptor, end)


def _checksum(number: str, skeleton: str, parts: Iterable[memoryview]) -> str:
    found = xxhash.xxh3_64(f"{number} {skeleton}".encode())
    for part in parts:
        found.update(part)
    return found.hexdigest()


# -- the commits of a run ---------------------------------------------------------------------------------------------
def committed(folder: Path) -> bool:
    """Whether a folder of checkpoints holds a commit."""
    return any(_path(folder, index).is_file() for index in range(FILES))


def newest_first(folder: Path) -> list[Path]:
    """Return the files of commits in a folder, the newest first. Files without a readable header come last."""
    paths = [path for path in (_path(folder, index) for index in range(FILES)) if path.is_file()]
    return sorted(paths, key=_number, reverse=True)


def intact(folder: Path, plain: bool = False) -> Iterator[tuple[Path, Tree | Damaged]]:
    """Yield (file, its tree, or the reason why it cannot be used) of the commits in a folder, the newest first."""
    for path in newest_first(folder):
        try:
            yield path, load(path, plain)
        except Damaged as damage:
            yield path, damage


def _path(folder: Path, index: int) -> Path:
    return folder / f"last-{index}.safetensors"


def _number(path: Path) -> int:
    """The number of a commit; 0 if its header cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            return int(file.metadata()["number"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return 0


class Commits:
    """Writer of the commits of a run.

    Args:
        folder: the folder of checkpoints.
        last: the file of the commit that the run continues from; None for a new run.

    Attributes:
        number: number of the newest commit; they count from 1.
    """

    def __init__(self, folder: Path, last: Path | None = None):
        self.folder = folder
        paths = [_path(folder, index) for index in range(FILES)]
        self._numbers = [_number(path) if path.is_file() else 0 for path in paths]
        self.number = max(self._numbers)
        self._last = paths.index(last) if last else None
        self._durable = self._last  # it outlived a process; whether it would outlive a power cut is not known
        self._syncing: tuple[int, Future[None]] | None = None
        self._synced = time.monotonic()
        self._thread: ThreadPoolExecutor | None = None
        self._open: dict[int, int] = {}  # index of a file -> descriptor

    @property
    def needed(self) -> int:
        """Number of the oldest commit that a killed process or a power cut may leave as the newest one; 0: none yet."""
        return 0 if self._durable is None else min(self.number - 1, self._numbers[self._durable])

    def save(self, tree: Tree, growing: Callable[[], Iterable[Path]], wait: bool = False) -> None:
        """Write a commit.

        Args:
            tree: what the run continues from.
            growing: returns the files whose contents the commit counts on.
            wait: return when the commit has reached the disk.
        """
        self._collect()
        busy = {self._last, self._durable, self._syncing and self._syncing[0]}
        index = next(index for index in range(FILES) if index not in busy)
        self.number += 1
        self._write(index, tree)
        self._numbers[index], self._last = self.number, index
        if wait and self._syncing is not None:
            self._syncing[1].result()
            self._collect()
        if self._syncing is None and (wait or time.monotonic() - self._synced > SYNC_SECONDS):
            self._thread = self._thread or ThreadPoolExecutor(1, "fsync")
            paths = [*growing(), _path(self.folder, index), self.folder]
            self._syncing, self._synced = (index, self._thread.submit(_sync, paths)), time.monotonic()
        if wait and self._syncing is not None:
            self._syncing[1].result()
            self._collect()

    def _write(self, index: int, tree: Tree) -> None:
        """Write a commit to a file. A new file gets its name last: a run without a whole commit holds none."""
        path = _path(self.folder, index)
        if not self._numbers[index]:
            with files.replacing(path) as part:
                self._open[index] = files.open_file(part, os.O_RDWR)
                _write(self._open[index], tree, self.number)
            return
        if index not in self._open:
            self._open[index] = files.open_file(path, os.O_RDWR | os.O_CREAT)
        _write(self._open[index], tree, self.number)

    def _collect(self) -> None:
        """Note a commit that has reached the disk in the meantime."""
        if self._syncing is not None and self._syncing[1].done():
            self._durable = self._syncing[0]
            self._syncing[1].result()
            self._syncing = None

    def close(self) -> None:
        """Close the files."""
        if self._thread is not None:
            self._thread.shutdown()
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()


def _sync(paths: Iterable[Path]) -> None:
    """Have the operating system write files through to the disk."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # a segment that was emptied in the meantime
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
