"""A dataset: arrays by name, first axis the sample.

    train   {"x": (N, ...), "y": (N,), ...}    what partitions share out among clients
    test    the same names, or None            what the server holds for evaluation
    clients (N,) or None                       whose a training row is by nature (a writer, a speaker, a device)
    server  {"x": ..., "y": ..., ...} or None  what the server itself may train on (public data, base classes)
    held    (N,) bool or None                  training rows that by nature their client only tests on: so in the partition `natural`,
                                               in others they are nobody's

Loaders are frozen dataclasses registered under "data" with a method `load() -> Dataset`.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fl.tensors.pickling import map_tensor

Arrays = dict[str, np.ndarray]
BLOCK = 1 << 24  # bytes that a digest reads at a time


@dataclass(frozen=True, eq=False)
class Dataset:
    """Arrays are kept contiguous; floating ones as float32, integer labels `y` as int64. Maps of files stay what they are."""

    train: Arrays
    test: Arrays | None = None
    clients: np.ndarray | None = None
    server: Arrays | None = None
    held: np.ndarray | None = None

    def __post_init__(self):
        if self.server is not None:
            object.__setattr__(self, "server", _checked("server", self.server))
        object.__setattr__(self, "train", _checked("train", self.train))
        if self.test is not None:
            object.__setattr__(self, "test", _checked("test", self.test))
            train, test = (
                {n: (a.shape[1:], str(a.dtype)) for n, a in part.items()} for part in (self.train, self.test)
            )
            if train != test:
                raise ValueError(f"test: {test} does not match train, which has {train} (shape of a sample, dtype)")
        if self.clients is not None:
            object.__setattr__(self, "clients", np.ascontiguousarray(self.clients))
            if self.clients.shape != (len(self),) or self.clients.dtype.kind not in "iu":
                raise ValueError(
                    f"clients: {self.clients.dtype} {self.clients.shape} is not one integer for each of {len(self)} rows"
                )
        if self.held is not None:
            object.__setattr__(self, "held", np.ascontiguousarray(self.held))
            if self.held.shape != (len(self),) or self.held.dtype != bool:
                raise ValueError(
                    f"held: {self.held.dtype} {self.held.shape} is not one bool for each of {len(self)} rows"
                )

    def __len__(self) -> int:
        """Rows of the training set."""
        return len(self.train["x"])

    @property
    def labels(self) -> np.ndarray:
        """`train["y"]`."""
        if "y" not in self.train:
            raise ValueError(f"train: there is no 'y' in {list(self.train)}; this dataset has no labels")
        return self.train["y"]

    def digest(self) -> str:
        """SHA-256 over all arrays: place, name, dtype, shape and bytes of each."""
        sha = hashlib.sha256()
        parts = {
            "train": self.train,
            "test": self.test or {},
            "server": self.server or {},
            "": {name: array for name in ("clients", "held") if (array := getattr(self, name)) is not None},
        }
        for part, arrays in parts.items():
            for name in sorted(arrays):
                array = arrays[name]
                sha.update(f"{part} {name} {array.dtype} {array.shape}\n".encode())
                for block in _blocks(array):
                    sha.update(block)
        return sha.hexdigest()


class Loader:
    """The type of fields that hold a part which loads data: registered under "data", with load() -> Dataset."""

    def load(self) -> Dataset:
        raise NotImplementedError


FORMS = (
    'a Dataset, {"x": ..., "y": ...}, {"train": {"x": ..., "y": ...}, "test": ..., "clients": ..., "server": ...}, (x, y), '
    "or (x_train, y_train, x_test, y_test)"
)


def as_dataset(value: Any) -> Dataset:
    """What a user's own function returned, in any of the `FORMS`, as a `Dataset`; arrays are whatever numpy takes for one."""
    if isinstance(value, Dataset):
        return value
    if isinstance(value, tuple):
        if len(value) not in (2, 4):
            raise ValueError(f"data: a tuple of {len(value)} is not {FORMS}")
        parts = [dict(zip("xy", value[i : i + 2])) for i in range(0, len(value), 2)]
        return as_dataset(dict(zip(("train", "test"), parts)))
    if not isinstance(value, Mapping):
        raise ValueError(f"data: {type(value).__name__} is not {FORMS}")
    if "x" in value:
        return Dataset(_arrays("train", value))
    unknown = sorted(map(str, value.keys() - {"train", "test", "clients", "server", "held"}))
    if unknown or "train" not in value:
        raise ValueError(f"data: a dict of {sorted(map(str, value))} is not {FORMS}")
    parts = {part: _arrays(part, value[part]) for part in ("train", "test", "server") if value.get(part) is not None}
    rows = {name: _array(name, value[name]) for name in ("clients", "held") if value.get(name) is not None}
    return Dataset(**parts, **rows)


def _arrays(part: str, arrays: Any) -> Arrays:
    if not isinstance(arrays, Mapping):
        raise ValueError(f'data: {part} is {type(arrays).__name__}, not a dict of arrays {{"x": ..., "y": ...}}')
    return {str(name): _array(f"{part}.{name}", array) for name, array in arrays.items()}


def _array(name: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError as error:  # rows of several lengths
        raise ValueError(f"data: {name} is no array: {error}") from None
    if array.dtype.kind not in "biuf" or not array.ndim:
        raise ValueError(
            f"data: {name} is {array.dtype} {array.shape}, not an array of numbers with a row for each sample"
        )
    return array


def _checked(part: str, arrays: Mapping[str, np.ndarray]) -> Arrays:
    if "x" not in arrays:
        raise ValueError(f"{part}: there is no 'x' in {list(arrays)}")
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{part}: arrays differ in length, {lengths}")
    return {name: _kept(array, _dtype(name, array.dtype)) for name, array in arrays.items()}


def _kept(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    as_it_is = isinstance(array, np.memmap) and array.dtype == dtype and array.flags.c_contiguous
    return array if as_it_is else np.ascontiguousarray(array, dtype)


def _blocks(array: np.ndarray) -> Iterator[memoryview]:
    """The bytes of an array; of a map, what has been read does not stay in memory."""
    flat = array.reshape(-1).view(np.uint8)
    for a in range(0, len(flat), BLOCK):
        yield flat[a : a + BLOCK].data
        if isinstance(array, np.memmap):
            array._mmap.madvise(mmap.MADV_DONTNEED)


def tensors(arrays: Mapping[str, np.ndarray] | None) -> dict[str, torch.Tensor]:
    """The arrays as tensors of the same memory; those that map a file do so wherever they are sent."""
    return {
        name: map_tensor(*_origin(array)) if isinstance(array, np.memmap) else torch.from_numpy(array)
        for name, array in (arrays or {}).items()
    }


def _origin(array: np.memmap) -> tuple[str, int, tuple[int, ...], str]:
    """(path, offset, shape, dtype) of a map, or of some consecutive rows of it (whose `offset` is the whole map's)."""
    begins = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY  # of the map in the file
    place = array.ctypes.data - np.frombuffer(array._mmap, np.uint8).ctypes.data
    return str(array.filename), begins + place, array.shape, str(array.dtype)


def _dtype(name: str, dtype: np.dtype) -> np.dtype:
    if dtype.kind == "f":
        return np.dtype(np.float32)
    return np.dtype(np.int64) if name == "y" and dtype.kind in "iub" else dtype
