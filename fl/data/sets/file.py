"""A data set in one file of the user's own: .npz or .parquet. `data: my.npz` is short for `data: {name: file, path: my.npz}`.

.npz       x, y [clients], or x_train, y_train [x_test, y_test] [clients]; first axis the sample
.parquet   a row for each sample: column `target` is y, column `clients` says whose it is, the others are x
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fl.data.dataset import Arrays, Dataset
from fl.data.folder import DATA_FILES, data_folder
from fl.registry import register

NPZ = "x, y [clients], or x_train, y_train [x_test, y_test] [clients]"


def codes(column: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Integers as they are; words numbered 0, 1, ... in the order of sorting, the same in all columns."""
    columns = [np.asarray(c) for c in (column, *others)]
    if all(c.dtype.kind in "iub" for c in columns):
        return columns
    numbers = np.unique(np.concatenate([c.astype(str) for c in columns]), return_inverse=True)[1]
    return np.split(numbers, np.cumsum([len(c) for c in columns])[:-1])


def from_arrays(arrays: Arrays, where: str = "the file", names: str = NPZ) -> Dataset:
    """A data set of arrays by the names that users give them."""
    have, split = set(arrays), "x" not in arrays
    needed = {"x_train", "y_train"} if split else {"x", "y"}
    tests = {"x_test", "y_test"} if split else set()
    if not needed <= have or have - needed - tests - {"clients"} or (tests & have and not tests <= have):
        raise ValueError(f"path: {where} has {sorted(have)}; it needs {names}")
    train = {"x": arrays["x_train" if split else "x"], "y": arrays["y_train" if split else "y"]}
    test = {"x": arrays["x_test"], "y": arrays["y_test"]} if tests & have else None
    owners = codes(arrays["clients"])[0] if "clients" in arrays else None
    return Dataset(train, test, owners)


def features(table: Any, names: list[str]) -> np.ndarray:
    """float32 (N, d): the columns of a pyarrow table side by side, of numbers or of lists of equally many numbers."""
    import pyarrow as pa

    blocks = []
    for name in names:
        column = table[name].combine_chunks()
        if (
            pa.types.is_fixed_size_list(column.type)
            or pa.types.is_list(column.type)
            or pa.types.is_large_list(column.type)
        ):
            values, lengths = column.flatten(), {len(row) for row in column if row.is_valid}
            if len(lengths) > 1 or column.null_count:
                raise ValueError(
                    f"features: the lists of column {name!r} differ in length, {sorted(lengths)}; pad them"
                )
        else:
            values = column
        if not (
            pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_boolean(values.type)
        ):
            raise ValueError(
                f"features: column {name!r} is {values.type}, not numbers; turn it into numbers, or name the columns to take"
            )
        if values.null_count:
            raise ValueError(
                f"features: column {name!r} lacks {values.null_count} values; fill them in, or leave it out"
            )
        block = values.to_numpy(zero_copy_only=False).astype(np.float32)
        blocks.append(block.reshape(len(table), -1))
    return np.concatenate(blocks, axis=1)


def column(table: Any, key: str, name: str) -> np.ndarray:
    """One column, without holes."""
    if name not in table.column_names:
        raise ValueError(f"{key}: {name!r} is not one of the columns {table.column_names}")
    if table[name].null_count:
        raise ValueError(f"{key}: column {name!r} lacks {table[name].null_count} values")
    return table[name].to_numpy()


@register("data", "file")
@dataclass(frozen=True, kw_only=True)
class File:
    """`path` is looked for from the file that names it, the present folder, then the data folder. `test`: a second .parquet, for the server.

    `target`, `clients`, `features`: columns of a .parquet (default: y, none, all the others). Labels and clients that are words
    are numbered by sorting; real targets stay real.
    `scale`: x is divided by it, as float32; pixels (uint8) need one, 255 for [0, 1].
    """

    path: str
    test: str | None = None
    target: str = "y"
    clients: str | None = None
    features: tuple[str, ...] | None = None
    scale: float | None = None

    def __post_init__(self):
        for key in ("path", "test"):
            value = getattr(self, key)
            if value is not None and not value.endswith(DATA_FILES):
                raise ValueError(f"{key}: {value!r} ends neither in .npz nor in .parquet")
        if self.scale is not None and not self.scale > 0:
            raise ValueError(f"scale: {self.scale} is not positive")
        if Path(self.path).suffix == ".npz":
            for key, unset in (("test", None), ("target", "y"), ("clients", None), ("features", None)):
                if getattr(self, key) != unset:
                    raise ValueError(f"{key}: {getattr(self, key)!r} is for .parquet; an .npz has {NPZ}")

    def load(self) -> Dataset:
        if Path(self.path).suffix == ".npz":
            with np.load(_found("path", self.path), allow_pickle=False) as arrays:
                try:
                    data = from_arrays(dict(arrays))
                except ValueError as error:
                    if "allow_pickle" not in str(error):
                        raise
                    raise ValueError(f"path: {self.path} holds Python objects, not arrays of numbers") from None
        else:
            data = self._tables()
        parts = (data.train,) if data.test is None else (data.train, data.test)
        if self.scale is None and data.train["x"].dtype == np.uint8:
            raise ValueError("scale: x is uint8; set 255 for pixels in [0, 1], or 1 for the numbers as they are")
        if self.scale is None:
            return data
        scaled = [part | {"x": part["x"].astype(np.float32) / np.float32(self.scale)} for part in parts]
        return Dataset(*scaled, clients=data.clients)

    def _tables(self) -> Dataset:
        import pyarrow.parquet as parquet

        files = {key: getattr(self, key) for key in ("path", "test") if getattr(self, key) is not None}
        tables = [parquet.read_table(_found(key, file)) for key, file in files.items()]
        targets = [column(table, "target", self.target) for table in tables]
        if any(t.dtype.kind != "f" for t in targets):
            targets = codes(*targets)
        names = self.features
        if names is None:
            names = tuple(n for n in tables[0].column_names if n not in (self.target, self.clients))
        for name in names:
            for table in tables:
                column(table, "features", name)
        if not names:
            raise ValueError(f"features: there is none beside {tables[0].column_names}")
        parts = [{"x": features(table, list(names)), "y": y} for table, y in zip(tables, targets)]
        owners = None if self.clients is None else codes(column(tables[0], "clients", self.clients))[0]
        return Dataset(*parts, clients=owners)


def _found(key: str, path: str) -> Path:
    found = next((p for p in (Path(path).expanduser(), data_folder() / path) if p.is_file()), None)
    if found is None:
        raise ValueError(f"{key}: {path} is neither in {Path.cwd()} nor in the data folder {data_folder()}")
    return found
