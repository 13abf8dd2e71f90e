"""Devices from a trace file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fl.checks import within
from fl.data.folder import locate
from fl.data.sets.file import read_table
from fl.registry import register
from fl.system.devices import COLUMNS, DeviceModel, Devices, devices, is_valid_figure, valid_figures
from fl.system.trace_file import entry_of_client, read_json, sorted_by_id


@register("devices", "trace")
@dataclass(frozen=True, kw_only=True)
class DeviceTrace(DeviceModel):
    """Devices from a file, one row per device. Client c has the row with the c-th id in ascending order.

    The file is .csv, .parquet or .json (a list of records). Its columns are figures (ms_per_sample, up_mbps, ...) and
    optionally `client`, the id; without ids the order of the rows counts. FedScale's client_device_capacity is read as
    .json (a pickle is never read): {id: {"computation": ms to infer one sample, "communication": kilobits per second}}
    gives ms_per_sample = training_factor * computation and up_mbps = down_mbps = communication / 1000.

    Args:
        path: The file, relative to the current directory or to the data folder.
        repeat: Start again from the first row if there are more clients than rows. Otherwise that is an error.
        training_factor: Ratio of training time to inference time in FedScale's files; positive.
    """

    path: str
    repeat: bool = False
    training_factor: float = 3.0

    def __post_init__(self) -> None:
        within("(0, inf)", training_factor=self.training_factor)

    def draw(self, seed: int, clients: int) -> Devices:
        figures = read_devices(self.path, self.training_factor)
        rows = entry_of_client(len(next(iter(figures.values()))), clients, self.path, self.repeat)
        return devices({name: values[rows] for name, values in figures.items()}, clients)


def read_devices(path: str, training_factor: float = 3.0) -> dict[str, np.ndarray]:
    """Return {figure: (R,)} of the R rows of a trace, in ascending order of their ids."""
    columns = _columns(path, training_factor)
    strange = sorted(columns.keys() - {*COLUMNS, "client"})
    if strange or not columns.keys() & COLUMNS.keys():
        raise ValueError(
            f"path: {path}: columns {strange or sorted(columns)}; a trace of devices may have {['client', *COLUMNS]}"
        )
    numbers = {name: _numbers(path, name, values) for name, values in columns.items()}
    if not len(next(iter(numbers.values()))):
        raise ValueError(f"path: {path} has no rows")
    ids = numbers.pop("client", None)
    if ids is None:
        return numbers
    order = np.argsort(ids, kind="stable")
    twice = order[1:][np.diff(ids[order]) == 0]
    if len(twice):
        raise ValueError(f"path: {path}: row {twice[0] + 1}: client {ids[twice[0]]:.0f} occurs twice")
    return {name: values[order] for name, values in numbers.items()}


def _columns(path: str, training_factor: float) -> dict[str, list[Any]]:
    """Return the columns of a trace, all of one length. Missing values are None."""
    found = locate(path)
    if found.suffix in (".csv", ".parquet"):
        columns: dict[str, list[Any]] = read_table(found, "path").to_pydict()
        return columns
    if found.suffix != ".json":
        raise ValueError(f"path: {path} is not .csv, .parquet or .json")
    entries = read_json(path)
    if isinstance(entries, dict):
        return _fedscale(path, entries, training_factor)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"path: {path} holds neither a list of records nor FedScale's capacities")
    names = dict.fromkeys(name for entry in entries for name in entry)
    return {name: [entry.get(name) for entry in entries] for name in names}


def _fedscale(path: str, entries: dict[str, Any], training_factor: float) -> dict[str, list[Any]]:
    """Convert FedScale's capacities: milliseconds to infer one sample, kilobits per second."""
    found = sorted_by_id(entries, path)
    for key, entry in found:
        for name in ("computation", "communication"):
            value = entry.get(name) if isinstance(entry, dict) else None
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ValueError(f"path: {path}: client {key}: {name} {value!r} is not a positive number")
    mbps = [entry["communication"] / 1000 for _, entry in found]
    return {
        "ms_per_sample": [training_factor * entry["computation"] for _, entry in found],
        "up_mbps": mbps,
        "down_mbps": mbps,
    }


def _numbers(path: str, name: str, values: list[Any]) -> np.ndarray:
    """Return a column as (R,) float64 after checking each value."""
    numbers = np.zeros(len(values))
    for row, value in enumerate(values):
        if value is None or value == "":
            raise ValueError(f"path: {path}: row {row + 1}: {name} is missing")
        try:
            numbers[row] = math.nan if isinstance(value, bool) else value
        except (TypeError, ValueError):
            raise ValueError(f"path: {path}: row {row + 1}: {name} {value!r} is not a number") from None
    good = (numbers >= 0) & (numbers == np.floor(numbers)) if name == "client" else is_valid_figure(name, numbers)
    if not good.all():
        row = np.flatnonzero(~good)[0]
        raise ValueError(f"path: {path}: row {row + 1}: {name} {values[row]} is not {valid_figures(name)}")
    return numbers
