"""Reading of a user's map-style data set: once, into arrays in mapped files.

deterministic   two reads of a few rows give equal bits, and no row moves a global random generator
random          otherwise: each row is read with torch's, NumPy's and Python's generators seeded by (part, row), and
                training reads it again with other seeds (redrawn.py)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from fl.data.items import Reader
from fl.data.redrawn import RowSource
from fl.data.temporary import temporary_array
from fl.tensors import random
from fl.tensors.generators import GeneratorWatch, preserved_generators
from fl.tensors.pickling import pack, unpack

log = logging.getLogger(__name__)

Row = dict[str, np.ndarray]
Arrays = dict[str, np.ndarray]
LOOKED_AT = 16  # rows that are read twice
GENERATORS = "torch's, NumPy's and Python's global generators"


def read_rows(reader: Reader, rows: int) -> tuple[Arrays, RowSource | None]:
    """Read all rows; return arrays by name, and what draws random rows again (None for deterministic data sets).

    Features are stored in a mapped file, as float32 or as integers. Numbers of one per row and labels are in memory.

    Raises:
        ValueError: a row cannot be read or has another form than row 0, or random draws cannot be repeated.
    """
    with preserved_generators():
        if not is_random(reader, rows):
            generators = GeneratorWatch()
            arrays = store(reader.row, rows, reader.part)
            if not generators.since_last():
                return arrays, None
        require_repeatable(reader, rows)
        log.info("data: rows of %s are random; training reads them at each access", reader.part)
        return store(lambda row: _seeded(reader, row, reader.part), rows, reader.part), RowSource(reader)


def is_random(reader: Reader, rows: int) -> bool:
    """Return whether two reads of some rows differ, or move a global generator."""
    generators = GeneratorWatch()
    some = _some(rows, 0)
    first, second = ([_bits(reader.row(row)) for row in some] for _ in range(2))
    return generators.since_last() or first != second


def require_repeatable(reader: Reader, rows: int) -> None:
    """Require that a row depends on the row and on the seeds of the global generators only, in each process.

    A copy of the data set, as worker processes get it, must draw the same as the data set itself.
    """
    name = type(reader.dataset).__name__
    try:
        copied = Reader(unpack(*pack(reader.dataset)), reader.part, reader.keys)
    except Exception as error:
        raise ValueError(
            f"{reader.part}: rows of {name} are random, and {name} cannot be sent to worker processes "
            f"({type(error).__name__}: {error}); open files in __getitem__"
        ) from None
    some = _some(rows, 1)  # other rows than `is_random` has read, because a data set may remember what it drew
    for row in some:
        _seeded(reader, row, "first")
    for row in some:
        if _bits(_seeded(reader, row, "second")) != _bits(_seeded(copied, row, "second")):
            raise ValueError(
                f"{reader.part}: row {row} of {name} differs between two reads with the same seeds; draw from "
                f"{GENERATORS} in __getitem__, not from an own generator, the clock or what earlier reads left"
            )


def _some(rows: int, offset: int) -> list[int]:
    return sorted({(i * rows // LOOKED_AT + offset) % rows for i in range(LOOKED_AT)})


def _seeded(reader: Reader, row: int, purpose: str) -> Row:
    return RowSource.seeded(reader, row, int(random.hash64("rows", purpose, row)))


def _bits(row: Row) -> list[tuple[str, tuple[int, ...], str, object]]:
    return [
        (name, a.shape, str(a.dtype), a.tolist() if a.dtype.kind == "O" else a.tobytes()) for name, a in row.items()
    ]


class _Column(Protocol):
    """Gathers the values of one name."""

    def put(self, row: int, value: np.ndarray) -> None: ...

    def array(self) -> np.ndarray: ...


class _Scalars:
    """One number or word per row; labels may be Python objects, which `Dataset` checks."""

    def __init__(self, name: str) -> None:
        self.name, self.values = name, list[Any]()

    def put(self, row: int, value: np.ndarray) -> None:
        self.values.append(value.item())

    def array(self) -> np.ndarray:
        return np.array(self.values, object if self.name in ("y", "clients") else None)


class _Block:
    """An array per row: in a mapped file, labels in memory. Floats are stored as float32."""

    def __init__(self, name: str, part: str, rows: int, first: np.ndarray) -> None:
        self.name, self.part = name, part
        dtype = np.dtype(np.float32) if first.dtype.kind == "f" else first.dtype
        shape = (rows, *first.shape)
        self.target = np.zeros(shape, dtype) if name == "y" else temporary_array(shape, dtype)

    def put(self, row: int, value: np.ndarray) -> None:
        if not np.can_cast(value.dtype, self.target.dtype, "same_kind"):
            raise ValueError(
                f"{self.part}: {self.name} in row {row} is {value.dtype}, and in row 0 {self.target.dtype}; "
                "rows must have one type"
            )
        with np.errstate(over="ignore"):  # too large for float32: the check of the data names them
            self.target[row] = value

    def array(self) -> np.ndarray:
        self.target.flags.writeable = False
        return self.target


def store(read: Callable[[int], Row], rows: int, part: str) -> Arrays:
    """Read rows 0..rows-1 into arrays.

    Raises:
        ValueError: rows differ in shape or type; the message names the first such row.
    """
    columns: dict[str, _Column] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for row in range(rows):
        values = read(row)
        for name, value in values.items():
            if not row:
                shapes[name] = value.shape
                columns[name] = _Block(name, part, rows, value) if value.ndim else _Scalars(name)
            if value.shape != shapes[name]:
                raise ValueError(
                    f"{part}: {name} in row {row} has the shape {value.shape}, and in row 0 {shapes[name]}; rows must "
                    "have one shape: pad, crop or resize them"
                )
            columns[name].put(row, value)
    return {name: column.array() for name, column in columns.items()}


def row_count(dataset: Any, part: str) -> int:
    """Return the number of rows of a data set."""
    try:
        return len(dataset)
    except TypeError as error:
        raise ValueError(f"{part}: {type(dataset).__name__} has no number of rows ({error}); define __len__") from None


def read_data_set(
    dataset: Any, part: str, features: Sequence[str] = (), target: str | None = None, clients: str | None = None
) -> tuple[Arrays, RowSource | None]:
    """Read a user's map-style data set, see `read_rows`. An empty one has no arrays."""
    rows = row_count(dataset, part)
    if not rows:
        return {}, None
    with preserved_generators():
        reader = Reader.of(dataset, part, features, target, clients)
    return read_rows(reader, rows)
