"""A data set: arrays by name; the first axis is the sample.

    train   {"x": (N, ...), "y": (N,), ...}    rows that a partition distributes among the clients; an array "topic"
                                               (N,) takes the place of y in partitions by label
    test    the same names, or None            rows on which the server evaluates
    clients (N,) or None                       natural owner of each training row (a writer, a speaker, a device)
    server  {"x": ..., "y": ..., ...} or None  rows on which the server may train (public data, base classes)
    held    (N,) int8, bool or None            0: a row for training, 1: for validation, 2 (or True): for tests. The
                                               partition `natural` keeps held rows; other partitions leave them out.

Loaders are frozen dataclasses, registered under "data", with a method `load() -> Dataset`.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from fl.data.redrawn import RedrawnArrays, RowSource
from fl.data.words import Words, numbered, plain
from fl.tensors.pickling import map_tensor

log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]
PARTS = ("train", "test", "server")
BLOCK = 1 << 24  # bytes that a digest reads at once


@dataclass(frozen=True, eq=False)
class Dataset:
    """Arrays by name; see the module.

    Arrays are stored contiguously, floating-point ones as float32, integer labels `y` as int64. Labels and clients
    that are words are numbered 0, 1, ... in sorted order. An array has one dtype in all parts. A test set without rows
    is left out. Mapped files stay mapped.

    Args:
        train: Training rows by name; `x` is required.
        test: The server's test rows, with the names, shapes and dtypes of `train`.
        clients: (N,) integer, natural owner of each training row.
        server: Rows on which the server may train.
        held: (N,) int8, what each row is for: 0 training, 1 validation, 2 tests of its natural owner. True is 2.
        words: Names of the classes 0, 1, ... if the labels were words. They are set here.
        source: Draws training rows again in training, if they are random. Default: each row is always the same.
        names: Names of the columns of `x` (N, D), if they are known.
        parties: For a vertical partition, `x` of each client, (N, its columns); `train` then has the columns of the
            active party, and the labels. Set by the engine.
        party_columns: For a vertical partition, the numbers of each party's columns, the active party first. Set by
            the engine.
    """

    train: Arrays
    test: Arrays | None = None
    clients: np.ndarray | None = None
    server: Arrays | None = None
    held: np.ndarray | None = None
    words: Words | None = None
    source: RowSource | None = None
    names: tuple[str, ...] | None = None
    parties: tuple[np.ndarray, ...] = ()
    party_columns: tuple[np.ndarray, ...] = ()

    def __post_init__(self) -> None:
        for name, array in self._stored_parts().items():
            object.__setattr__(self, name, array)
        if self.test is not None:
            train, test = (
                {n: (a.shape[1:], str(a.dtype)) for n, a in part.items()} for part in (self.train, self.test)
            )
            if train != test:
                raise ValueError(f"test: {test} does not match train, which has {train} (shape and dtype of a sample)")
        if self.clients is not None:
            owners = plain("clients", np.ascontiguousarray(self.clients))
            object.__setattr__(self, "clients", numbered([owners])[0][0] if owners.dtype.kind == "U" else owners)
            if self.clients.shape != (len(self),) or self.clients.dtype.kind not in "iu":
                raise ValueError(
                    f"clients: {self.clients.dtype} {self.clients.shape} "
                    f"is not one integer for each of {len(self)} rows"
                )
        if self.held is not None:
            object.__setattr__(self, "held", _held(np.ascontiguousarray(self.held), len(self)))

    def _stored_parts(self) -> dict[str, Any]:
        """Return the converted arrays of train, test and server, and the words of the labels."""
        parts = {part: _checked(part, arrays) for part, arrays in self.parts().items()}
        for part in ("test", "server"):
            if part in parts and not len(parts[part]["x"]):
                log.warning("data: %s has no rows; it is left out", part)
                del parts[part]
        parts, words = _with_labels(parts)
        dtypes = {name: _dtype(name, [p[name] for p in parts.values() if name in p]) for name in _names(parts)}
        stored = {part: {n: _stored(a, dtypes[n]) for n, a in arrays.items()} for part, arrays in parts.items()}
        return {part: stored.get(part) for part in PARTS} | {"words": self.words if words is None else words}

    def __len__(self) -> int:
        """Number of training rows."""
        return len(self.train["x"])

    @property
    def labels(self) -> np.ndarray:
        """What partitions divide rows by: `topic` where a data set has it, else the labels `y` of the training rows.

        A `ValueError` if there are none.
        """
        if "topic" in self.train:
            return self.train["topic"]
        if "y" not in self.train:
            raise ValueError(f"train: there is no 'y' in {list(self.train)}; this data set has no labels")
        return self.train["y"]

    @property
    def notes(self) -> list[str]:
        """Sentences for the first line of a run."""
        return [] if self.source is None else ["the data set is random, so training reads its rows at each access"]

    def held_for(self, split: Literal["val", "test"]) -> np.ndarray:
        """Return (N,) bool: the rows that their natural owner keeps for validation or for tests."""
        if self.held is None:
            return np.zeros(len(self), bool)
        if self.held.dtype == bool:
            return self.held if split == "test" else np.zeros(len(self), bool)
        return self.held == (1 if split == "val" else 2)

    def parts(self) -> dict[str, Arrays]:
        """Return the parts that there are, of train, test and server, by name."""
        return {part: arrays for part in PARTS if (arrays := getattr(self, part)) is not None}

    def training_tensors(self) -> dict[str, torch.Tensor]:
        """Return the training rows as tensors of the same memory; random rows are drawn again in training."""
        stored = tensors(self.train)
        return stored if self.source is None else RedrawnArrays(stored, replace(self.source, words=self.words))

    def mapped(self, change: Callable[[str, Arrays], Arrays]) -> Dataset:
        """Return the data set with change(part, arrays) for the arrays of each part that there is."""
        new = {part: change(part, arrays) for part, arrays in self.parts().items()}
        return replace(self, train=new["train"], test=new.get("test"), server=new.get("server"))

    def digest(self) -> str:
        """Return the SHA-256 over part, name, dtype, shape and bytes of all arrays."""
        sha = hashlib.sha256()
        parts = {
            "train": self.train,
            "test": self.test or {},
            "server": self.server or {},
            "": {name: array for name in ("clients", "held") if (array := getattr(self, name)) is not None},
            "party": {str(client): x for client, x in enumerate(self.parties)},
        }
        for part, arrays in parts.items():
            for name in sorted(arrays):
                array = arrays[name]
                sha.update(f"{part} {name} {array.dtype} {array.shape}\n".encode())
                for block in _blocks(array):
                    sha.update(block)
        return sha.hexdigest()


class Loader:
    """Base of data sets that can be configured: frozen dataclasses registered under "data"."""

    def load(self) -> Dataset:
        """Read or generate the data set."""
        raise NotImplementedError


def _held(held: np.ndarray, rows: int) -> np.ndarray:
    """Return `held` as bool or int8."""
    if held.shape == (rows,) and held.dtype == bool:
        return held
    if held.shape != (rows,) or held.dtype.kind not in "iu" or not np.isin(held, (0, 1, 2)).all():
        raise ValueError(
            f"held: {held.dtype} {held.shape} is not one bool for each of {rows} rows, nor one of 0 (training), "
            "1 (validation) and 2 (test)"
        )
    return held.astype(np.int8)


def _checked(part: str, arrays: Mapping[str, np.ndarray]) -> Arrays:
    if "x" not in arrays:
        raise ValueError(f"{part}: there is no 'x' in {list(arrays)}")
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{part}: arrays differ in length, {lengths}")
    return dict(arrays)


def _names(parts: Mapping[str, Arrays]) -> list[str]:
    return list(dict.fromkeys(name for arrays in parts.values() for name in arrays))


def _with_labels(parts: dict[str, Arrays]) -> tuple[dict[str, Arrays], Words | None]:
    """Number labels that are words, and give `y` one shape in all parts. A word has one number in all parts."""
    labels = {part: plain(f"{part}.y", arrays["y"]) for part, arrays in parts.items() if "y" in arrays}
    if len({y.shape[1:] for y in labels.values()} | {(), (1,)}) == 2:  # (N,) or (N, 1), and perhaps both
        flat = any(y.ndim == 1 for y in labels.values())
        labels = {part: y.reshape(-1) if flat else y for part, y in labels.items()}
    words = None
    if any(y.dtype.kind == "U" for y in labels.values()):
        columns, words = numbered(list(labels.values()))
        labels = dict(zip(labels, columns))
    return {part: arrays | ({"y": labels[part]} if part in labels else {}) for part, arrays in parts.items()}, words


def _stored(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if isinstance(array, np.memmap) and array.flags.c_contiguous and array.dtype.kind in "biu" and array.ndim > 1:
        return array  # mapped features are not converted; a test set of another dtype is refused
    mapped = isinstance(array, np.memmap) and array.dtype == dtype and array.flags.c_contiguous
    with np.errstate(over="ignore"):  # numbers too large for float32 become infinite; the check of the data names them
        # torch warns of arrays that are read-only, such as the columns of a pandas frame
        return array if mapped else np.require(array, dtype, ["C_CONTIGUOUS", "WRITEABLE"])


def _blocks(array: np.ndarray) -> Iterator[memoryview]:
    """Yield the bytes of an array. Pages of a mapped file are released after reading."""
    flat = array.reshape(-1).view(np.uint8)
    for a in range(0, len(flat), BLOCK):
        yield flat[a : a + BLOCK].data
        if isinstance(array, np.memmap):
            _map_of(array).madvise(mmap.MADV_DONTNEED)


def tensors(arrays: Mapping[str, np.ndarray] | None) -> dict[str, torch.Tensor]:
    """Return the arrays as tensors of the same memory. Mapped files stay mapped, also in other processes."""
    return {
        name: map_tensor(*file_origin(array)) if isinstance(array, np.memmap) else torch.from_numpy(array)
        for name, array in (arrays or {}).items()
    }


def file_origin(array: np.memmap) -> tuple[str, int, tuple[int, ...], str]:
    """Return (path, offset, shape, dtype) of a mapped array or of consecutive rows of one."""
    # a slice keeps the `offset` of the whole array, so its position is found from the addresses
    map_start = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY
    position = array.ctypes.data - np.frombuffer(_map_of(array), np.uint8).ctypes.data
    return str(array.filename), map_start + position, array.shape, str(array.dtype)


def _map_of(array: np.memmap) -> mmap.mmap:
    return array._mmap  # type: ignore[attr-defined]  # numpy has no public name for it


def _dtype(name: str, arrays: list[np.ndarray]) -> np.dtype:
    """Return the dtype in which an array is stored, in all parts."""
    kinds = {array.dtype.kind for array in arrays}
    if wrong := kinds - set("biuf"):
        dtype = next(array.dtype for array in arrays if array.dtype.kind in wrong)
        raise ValueError(f"data: {name} is {dtype}, not numbers; convert it to numbers")
    if "f" in kinds:
        return np.dtype(np.float32)
    common = np.dtype(np.int64) if name == "y" else np.result_type(*arrays)
    return np.dtype(np.float32) if common.kind == "f" else common  # int64 and uint64 have no common integer type
