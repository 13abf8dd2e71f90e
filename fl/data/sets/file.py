"""The user's own data set in one file, .npz, .parquet or .csv. `data: my.npz` means `data: {name: file, path: my.npz}`.

.npz       x, y [clients], or x_train, y_train [x_test, y_test] [clients]; the first axis is the sample
.parquet   one row per sample: column `target` is y, column `clients` is the owner, the other columns are x
.csv       the same, with the names of the columns in the first line; empty cells and NA are missing values
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fl.checks import positive
from fl.data.archives import read_npz, read_parquet
from fl.data.columns import column, features, identifiers, labels
from fl.data.dataset import Arrays, Dataset, Loader
from fl.data.folder import DATA_FILES, locate
from fl.data.words import codes
from fl.registry import register

NPZ = "x, y [clients], or x_train, y_train [x_test, y_test] [clients]"


def from_arrays(arrays: Arrays, where: str = "the file", names: str = NPZ) -> Dataset:
    """Return the data set of arrays that are named as in `names`. `where` is the source for error messages."""
    have, split = set(arrays), "x" not in arrays
    needed = {"x_train", "y_train"} if split else {"x", "y"}
    tests = {"x_test", "y_test"} if split else set()
    if not needed <= have or have - needed - tests - {"clients"} or (tests & have and not tests <= have):
        raise ValueError(f"path: {where} has {sorted(have)}; it needs {names}")
    train = {"x": arrays["x_train" if split else "x"], "y": arrays["y_train" if split else "y"]}
    test = {"x": arrays["x_test"], "y": arrays["y_test"]} if tests & have else None
    owners = codes(arrays["clients"])[0] if "clients" in arrays else None
    return Dataset(train, test, owners)


def read_table(path: Path, key: str) -> Any:
    """Read a .parquet or .csv file as a pyarrow table. Errors begin with `key`, the setting that names the file."""
    import pyarrow as pa
    import pyarrow.csv as csv

    if path.suffix == ".npz":
        raise ValueError(f"{key}: {path} is not a table; give a .parquet or .csv file")
    try:
        if path.suffix == ".csv":
            table = csv.read_csv(path, convert_options=csv.ConvertOptions(strings_can_be_null=True))
        else:
            table = read_parquet(path, key)
        names = table.column_names
    except (ValueError, OSError, pa.ArrowException) as error:  # pyarrow has all three for damaged content
        if isinstance(error, OSError) and error.errno is not None:  # the file system's
            raise
        raise ValueError(f"{key}: {path} cannot be read: {error}") from None
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{key}: {path} has several columns with the name {twice[0]!r}; rename them")
    return table


@register("data", "file")
@dataclass(frozen=True, kw_only=True)
class File(Loader):
    """The user's own file, .npz, .parquet or .csv. Labels and clients that are words are numbered in sorted order.

    Args:
        path: The file, relative to the configuration file, to the current directory or to the data folder.
        test: A second table (.parquet or .csv) with the server's test rows.
        target: Column of a table with the labels; real values stay real.
        clients: Column of a table with the owner of each row.
        features: Columns of a table with the features. Default: all others.
        scale: Divide x by this number, as float32; positive. Pixels (uint8) need it; 255 gives [0, 1].
    """

    path: str
    test: str | None = None
    target: str = "y"
    clients: str | None = None
    features: tuple[str, ...] | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        for key in ("path", "test"):
            value = getattr(self, key)
            if value is not None and not value.endswith(DATA_FILES):
                raise ValueError(f"{key}: {value!r} must end in .npz, .parquet or .csv")
        positive(scale=self.scale)
        if Path(self.path).suffix == ".npz":
            for key, unset in (("test", None), ("target", "y"), ("clients", None), ("features", None)):
                if getattr(self, key) != unset:
                    raise ValueError(f"{key}: {getattr(self, key)!r} is for .parquet and .csv only; an .npz has {NPZ}")

    def load(self) -> Dataset:
        if Path(self.path).suffix == ".npz":
            data = from_arrays(read_npz(locate(self.path)))
        else:
            data = self._tables()
        if self.scale is None and data.train["x"].dtype == np.uint8:
            raise ValueError("scale: x is uint8; set 255 for pixels in [0, 1], or 1 for unchanged numbers")
        if self.scale is None:
            return data
        scale = np.float32(self.scale)

        def scaled(part: Arrays) -> Arrays:
            return part | {"x": part["x"].astype(np.float32) / scale}

        return replace(data, train=scaled(data.train), test=data.test and scaled(data.test))

    def _tables(self) -> Dataset:
        files = {key: getattr(self, key) for key in ("path", "test") if getattr(self, key) is not None}
        tables = [read_table(locate(file, key), key) for key, file in files.items()]
        targets = [labels(table, self.target) for table in tables]
        names = self.features
        if names is None:
            names = tuple(n for n in tables[0].column_names if n not in (self.target, self.clients))
        for name in names:
            for table in tables:
                column(table, "features", name)
        if not names:
            raise ValueError(f"features: no column is left in {tables[0].column_names}")
        parts = [{"x": features(table, list(names)), "y": y} for table, y in zip(tables, targets)]
        owners = None if self.clients is None else codes(identifiers(tables[0], "clients", self.clients))[0]
        each = names if parts[0]["x"].shape[1] == len(names) else None  # a column of lists gives several features
        return Dataset(parts[0], parts[1] if len(parts) > 1 else None, owners, names=each)
