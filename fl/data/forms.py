"""The forms in which a user gives data: arrays, map-style data sets, and parts of them, as a `Dataset`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch.utils.data as torch_data

from fl.data.dataset import Arrays, Dataset
from fl.data.hugging_face import is_hugging_face, is_transformed, read_columns
from fl.data.reading import read_data_set
from fl.data.redrawn import RowSource

log = logging.getLogger(__name__)

FORMS = (
    'a Dataset, {"x": ..., "y": ...}, {"train": {"x": ..., "y": ...}, "test": ..., "clients": ..., "server": ...}, '
    "(x, y), (x_train, y_train, x_test, y_test), a map-style data set of torch or Hugging Face, (train, test), or "
    '{"train": data set, "test": data set}'
)
COLUMNS = ("features", "target")  # beside "train": names of the columns of a data set


def is_data_set(value: Any) -> bool:
    """Return whether a value is a map-style data set: torch's, Hugging Face's, or with `__getitem__` and `__len__`.

    Arrays, tables, sequences and mappings are none.

    >>> is_data_set(torch_data.TensorDataset()), is_data_set([1, 2]), is_data_set(np.zeros(3))
    (True, False, False)
    """
    if isinstance(value, torch_data.Dataset):
        return not isinstance(value, torch_data.IterableDataset)
    if is_hugging_face(value):
        return True
    if isinstance(value, (type, str, bytes, Sequence, Mapping)) or hasattr(value, "__array__"):
        return False
    rows = hasattr(type(value), "__getitem__") and hasattr(type(value), "__len__")
    return rows and not hasattr(value, "load")


class GivenData:
    """A data part for arrays or data sets of a user. They are read at the first use, once for several runs.

    Args:
        value: In one of the `FORMS`.
        made_by: The function that returned it; None if it was given itself.
    """

    def __init__(self, value: Any, made_by: Any = None) -> None:
        self.value, self.made_by = value, made_by

    def load(self) -> Dataset:
        """Return the data set."""
        return self._read

    @cached_property
    def _read(self) -> Dataset:
        return as_dataset(self.value)


def as_dataset(value: Any) -> Dataset:
    """Convert data in any of the `FORMS` to a `Dataset`.

    An array may be anything that numpy converts to one. Data sets are read once into mapped files (reading.py).

    >>> len(as_dataset(([[1.0], [2.0]], [0, 1])))
    2
    """
    if isinstance(value, Dataset):
        return value
    if is_data_set(value):
        return _from_parts({"train": value})
    if isinstance(value, (tuple, list)) and value and all(map(is_data_set, value)):
        if len(value) > 2:
            raise ValueError(f"data: {len(value)} data sets are not {FORMS}")
        return _from_parts(dict(zip(("train", "test"), value)))
    if isinstance(value, tuple):
        if len(value) not in (2, 4):
            raise ValueError(f"data: a tuple of {len(value)} is not {FORMS}")
        pairs = [dict(zip("xy", value[i : i + 2])) for i in range(0, len(value), 2)]
        return as_dataset(dict(zip(("train", "test"), pairs)))
    if not isinstance(value, Mapping):
        raise ValueError(f"data: {type(value).__name__} is not {FORMS}{_hint(value)}")
    if "x" in value:
        return Dataset(_arrays("train", value))
    if all(map(is_data_set, value.values())) and value:  # Hugging Face's DatasetDict
        return _from_dict_of_sets(value)
    known = {"train", "test", "server", "clients", "held", *(COLUMNS if is_data_set(value.get("train")) else ())}
    unknown = sorted(map(str, value.keys() - known))
    if unknown or "train" not in value:
        raise ValueError(f"data: a dict of {sorted(map(str, value))} is not {FORMS}")
    parts = {part: value[part] for part in ("train", "test", "server") if value.get(part) is not None}
    rows = {name: value[name] for name in ("clients", "held") if value.get(name) is not None}
    names = value.get("features", ())
    return _from_parts(parts, rows, (names,) if isinstance(names, str) else tuple(names or ()), value.get("target"))


def _hint(value: Any) -> str:
    if isinstance(value, torch_data.DataLoader):
        return "; give its `dataset`"
    if isinstance(value, torch_data.IterableDataset) or type(value).__name__.startswith("Iterable"):
        return "; rows of a client are read by number, so load it as a map-style data set (without streaming)"
    return ""


def _from_dict_of_sets(value: Mapping[str, Any]) -> Dataset:
    """Read the parts `train` and `test` (or `validation`) of a dict of data sets."""
    if "train" not in value:
        raise ValueError(f'data: a dict of the data sets {list(value)}; give {{"train": ..., "test": ...}}')
    test = next((name for name in ("test", "validation") if name in value), None)
    if others := [name for name in value if name not in ("train", "test", "server", test)]:
        log.warning("data: the parts %s are not used", others)
    parts = {"train": value["train"]} | ({} if test is None else {"test": value[test]})
    return _from_parts(parts | ({"server": value["server"]} if "server" in value else {}))


def _from_parts(
    parts: Mapping[str, Any],
    rows: Mapping[str, Any] | None = None,
    features: Sequence[str] = (),
    target: str | None = None,
) -> Dataset:
    """Make a `Dataset` of parts that are data sets or dicts of arrays.

    Args:
        parts: train, and perhaps test and server.
        rows: clients, the owners of the training rows or the name of their column, and held.
        features: Columns of x in data sets.
        target: Column of y in data sets.
    """
    given, source = dict(rows or {}), None
    column = given.pop("clients") if isinstance(given.get("clients"), str) else None
    arrays: dict[str, Arrays] = {}
    for part, value in parts.items():
        if not is_data_set(value):
            arrays[part] = _arrays(part, value)
            continue
        arrays[part], found = _read(value, part, features, target, column if part == "train" else None)
        if part == "train":
            source, owners = found, arrays[part].pop("clients", None)
            given |= {} if owners is None else {"clients": owners}
        if not arrays[part] and part != "train":
            del arrays[part]
    if column is not None and "clients" not in given:
        raise ValueError(f"data: clients: {column!r} is no column of train, which has arrays; give an array")
    if not arrays["train"]:
        raise ValueError("data: train has no rows")
    held = {name: _array(name, array) for name, array in given.items()}
    dataset = Dataset(arrays["train"], arrays.get("test"), held.get("clients"), arrays.get("server"), held.get("held"))
    return dataset if source is None else replace(dataset, source=source)


def _read(
    dataset: Any, part: str, features: Sequence[str], target: str | None, clients: str | None
) -> tuple[Arrays, RowSource | None]:
    if is_hugging_face(dataset) and not is_transformed(dataset):
        return (read_columns(dataset, part, features, target, clients) if len(dataset) else {}), None
    return read_data_set(dataset, part, features, target, clients)


def _arrays(part: str, arrays: Any) -> Arrays:
    if not isinstance(arrays, Mapping):
        raise ValueError(
            f'data: {part} is {type(arrays).__name__}, not a dict of arrays {{"x": ..., "y": ...}}; '
            "a configuration file names a data set, as in data: digits, or a file, as in data: ./rows.csv"
        )
    return {str(name): _array(f"{part}.{name}", array) for name, array in arrays.items()}


def _array(name: str, value: Any) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"data: {name} is not an array: {error}") from None
    labels = name.endswith(".y") or name == "clients"
    if array.dtype.kind not in ("biufOSU" if labels else "biuf") or not array.ndim:
        raise ValueError(
            f"data: {name} is {array.dtype} {array.shape}, not an array of numbers with one row per sample"
        )
    return array
