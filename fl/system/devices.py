"""Devices of clients: compute speed, bandwidth, latency, memory, power.

    draw(seed, clients) -> Devices          columns (clients,); a client's device is the same in every population

Figures are in human units, as `Figures` names them; columns are in seconds, bytes, watts. Drawn by the address
(seed, "devices", column, client).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fl.data.folder import data_folder
from fl.registry import register
from fl.tensors import random

# figure -> (column, what one unit is there, value where it is not given)
COLUMNS = {
    "ms_per_sample": ("seconds_per_sample", 1e-3, math.nan),
    "gflops": ("flops_per_second", 1e9, math.nan),
    "up_mbps": ("up_bytes_per_second", 1e6 / 8, math.inf),
    "down_mbps": ("down_bytes_per_second", 1e6 / 8, math.inf),
    "latency_ms": ("latency_seconds", 1e-3, 0.0),
    "memory_mb": ("memory_bytes", 1e6, math.inf),
    "compute_watts": ("compute_watts", 1.0, math.nan),
    "radio_watts": ("radio_watts", 1.0, math.nan),
}
SPEEDS = ("ms_per_sample", "gflops", "up_mbps", "down_mbps", "latency_ms")  # what a number for all spreads
DURATIONS = ("ms_per_sample", "latency_ms")  # slower is more; of the others slower is less
MAY_BE_ZERO = ("ms_per_sample", "latency_ms", "compute_watts", "radio_watts")


@dataclass(frozen=True)
class Devices:
    """Columns (C,) float64 of C clients. NaN: not known; infinite: no limit. `kind` (C,) int16 counts into `kinds`."""

    seconds_per_sample: np.ndarray
    flops_per_second: np.ndarray
    up_bytes_per_second: np.ndarray
    down_bytes_per_second: np.ndarray
    latency_seconds: np.ndarray
    memory_bytes: np.ndarray
    compute_watts: np.ndarray
    radio_watts: np.ndarray
    kind: np.ndarray
    kinds: tuple[str, ...] = ("device",)

    def __len__(self) -> int:
        return len(self.kind)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """A device: milliseconds to train on one sample (or 10^9 FLOPs a second), 10^6 bits a second up and down, latency of a
    message in ms, memory in 10^6 bytes, watts while it computes and while it sends or receives. Left out: unknown speed and
    watts, no limit, no latency."""

    ms_per_sample: float | None = None
    gflops: float | None = None
    up_mbps: float | None = None
    down_mbps: float | None = None
    latency_ms: float | None = None
    memory_mb: float | None = None
    compute_watts: float | None = None
    radio_watts: float | None = None

    def __post_init__(self):
        for name, value in self.given().items():
            if not _good(name, np.float64(value)):
                raise ValueError(f"{name}: {value} is not {_wanted(name)}")

    def given(self) -> dict[str, float]:
        """The figures that are not left out."""
        return {name: getattr(self, name) for name in COLUMNS if getattr(self, name) is not None}


class DeviceModel:
    """Base of parts that say who has which device: frozen dataclasses of their parameters."""

    def draw(self, seed: int, clients: int) -> Devices:
        """The devices of clients 0..clients-1; a `ValueError` if there are none for so many."""
        raise NotImplementedError


def devices(figures: Mapping[str, Any], clients: int) -> Devices:
    """Columns of figures that are numbers or arrays (clients,)."""
    columns: dict[str, Any] = {}
    for name, (column, unit, missing) in COLUMNS.items():
        value = figures.get(name)
        columns[column] = (
            np.full(clients, missing) if value is None else np.broadcast_to(value * unit, clients).astype(float)
        )
    return Devices(**columns, kind=np.zeros(clients, np.int16))


def lognormal_factors(sigma: float, *address: Any) -> np.ndarray:
    """exp(sigma z), z standard normal: median 1. One for each address."""
    from scipy.special import ndtri

    return np.exp(sigma * ndtri(random.uniform(*address) + 2.0**-54))


def pareto_factors(alpha: float, *address: Any) -> np.ndarray:
    """(1 - u)^(-1 / alpha): at least 1, beyond s with probability s^-alpha. One for each address."""
    return (1 - random.uniform(*address)) ** (-1 / alpha)


@register("devices", "identical")
@dataclass(frozen=True, kw_only=True)
class Identical(Figures, DeviceModel):
    """The same device for everybody."""

    def draw(self, seed, clients):
        return devices(self.given(), clients)


@register("devices", "lognormal")
@dataclass(frozen=True, kw_only=True)
class Lognormal(Figures, DeviceModel):
    """Figures are medians:    x_c = x exp(sigma z_c), z_c standard normal, of each column its own.

    sigma: a number for all speeds that are given (ms_per_sample, gflops, up_mbps, down_mbps, latency_ms), or one by name.
    Neutral: sigma=0 is `identical`.
    """

    sigma: float | dict[str, float] = 0.5

    def __post_init__(self):
        super().__post_init__()
        for name, sigma in _by_name("sigma", self.sigma, self).items():
            if not 0 <= sigma < math.inf:
                raise ValueError(f"sigma: {sigma} of {name} is not a number from 0")

    def draw(self, seed, clients):
        ids, figures = np.arange(clients), self.given()
        for name, sigma in _by_name("sigma", self.sigma, self).items():
            figures[name] = figures[name] * lognormal_factors(sigma, seed, "devices", name, ids)
        return devices(figures, clients)


@register("devices", "pareto")
@dataclass(frozen=True, kw_only=True)
class Pareto(Figures, DeviceModel):
    """Figures are of the best device; the others are s_c >= 1 times slower, P(s_c > s) = s^-alpha, of each column its own.

        ms_per_sample, latency_ms: x_c = x s_c            gflops, up_mbps, down_mbps, memory_mb, watts: x_c = x / s_c

    alpha: a number for all speeds that are given, or one by name. Heavy-tailed: slowness has a mean for alpha > 1 only, a
    variance for alpha > 2. Large alpha approaches `identical`.
    """

    alpha: float | dict[str, float] = 2.0

    def __post_init__(self):
        super().__post_init__()
        for name, alpha in _by_name("alpha", self.alpha, self).items():
            if not alpha > 0:
                raise ValueError(f"alpha: {alpha} of {name} is not positive")

    def draw(self, seed, clients):
        ids, figures = np.arange(clients), self.given()
        for name, alpha in _by_name("alpha", self.alpha, self).items():
            slower = pareto_factors(alpha, seed, "devices", name, ids)
            figures[name] = figures[name] * slower if name in DURATIONS else figures[name] / slower
        return devices(figures, clients)


@dataclass(frozen=True, kw_only=True)
class DeviceClass(Figures):
    """A class of devices, the `share` of the clients; `sigma` > 0 spreads its speeds log-normally about the figures."""

    share: float
    sigma: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise ValueError(f"share: {self.share} is not in (0, 1]")
        if not 0 <= self.sigma < math.inf:
            raise ValueError(f"sigma: {self.sigma} is not a number from 0")


@register("devices", "classes")
@dataclass(frozen=True, kw_only=True)
class Classes(DeviceModel):
    """Each client's class drawn with the probabilities `share`: phones, laptops, ..."""

    classes: dict[str, DeviceClass]

    def __post_init__(self):
        total = sum(each.share for each in self.classes.values())
        if abs(total - 1) > 1e-6:
            raise ValueError(f"classes: the shares of {sorted(self.classes)} sum to {total:.6g}, not to 1")

    def draw(self, seed, clients):
        ids, (*shares, _) = np.arange(clients), np.cumsum([each.share for each in self.classes.values()])
        kind = np.searchsorted(shares, random.uniform(seed, "devices", "class", ids), side="right").astype(np.int16)
        drawn = [Lognormal(**each.given(), sigma=each.sigma).draw(seed, clients) for each in self.classes.values()]
        columns = {column: np.choose(kind, [getattr(d, column) for d in drawn]) for column, _, _ in COLUMNS.values()}
        return Devices(**columns, kind=kind, kinds=tuple(self.classes))


@register("devices", "trace")
@dataclass(frozen=True, kw_only=True)
class Trace(DeviceModel):
    """Devices from a file, one row each: client c has the row of the c-th id in ascending order.

    path: .csv, .parquet or .json (a list of records) whose columns are figures (ms_per_sample, up_mbps, ...), and `client` where
    rows have ids (else their order is that of the clients). Or FedScale's client_device_capacity as .json (its pickle is never
    read): {id: {"computation": ms to infer one sample, "communication": kilobits a second}}, read as
    ms_per_sample = training_factor * computation and up_mbps = down_mbps = communication / 1000.

    repeat: more clients than rows take the rows again from the first. The path is looked for from the present folder, then from
    the data folder.
    """

    path: str
    repeat: bool = False
    training_factor: float = 3.0

    def __post_init__(self):
        if not 0 < self.training_factor < math.inf:
            raise ValueError(f"training_factor: {self.training_factor} is not positive")

    def draw(self, seed, clients):
        figures = read_devices(self.path, self.training_factor)
        rows = taken(len(next(iter(figures.values()))), clients, self.path, self.repeat)
        return devices({name: values[rows] for name, values in figures.items()}, clients)


def located(path: str) -> Path:
    """The file at `path`, from the present folder or else from the data folder."""
    found = next((p for p in (Path(path), data_folder() / path) if p.is_file()), None)
    if found is None:
        raise ValueError(f"path: {path} is neither in {Path.cwd()} nor in the data folder {data_folder()}")
    return found


def taken(rows: int, clients: int, path: str, repeat: bool) -> np.ndarray:
    """(clients,): whose entry of a trace of `rows` each client has."""
    if clients > rows and not repeat:
        raise ValueError(f"path: {path} has {rows} clients, the population {clients}; repeat: true takes them again")
    return np.arange(clients) % rows


def content(path: str) -> Any:
    """What a .json file holds; an `id` given twice is an error."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"path: {path}: {next(n for n in names if names.count(n) > 1)!r} is there twice")
        return found

    try:
        return json.loads(located(path).read_text(), object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise ValueError(f"path: {path} is not JSON: {error}") from None


def by_id(entries: Mapping[str, Any], path: str) -> list[tuple[str, Any]]:
    """(id, entry) in ascending order of the ids, which are whole numbers."""
    wrong = next((key for key in entries if not key.isdecimal()), None)
    if wrong is not None or not entries:
        raise ValueError(f"path: {path}: " + (f"{wrong!r} is not a client's number" if entries else "nobody is in it"))
    return sorted(entries.items(), key=lambda item: int(item[0]))


def read_devices(path: str, training_factor: float = 3.0) -> dict[str, np.ndarray]:
    """figure -> (R,) of the rows of a trace, in the order of their clients."""
    columns = _columns(path, training_factor)
    strange = sorted(columns.keys() - {*COLUMNS, "client"})
    if strange or not columns.keys() & COLUMNS.keys():
        raise ValueError(
            f"path: {path}: columns {strange or sorted(columns)}; a trace of devices has {['client', *COLUMNS]}"
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
        raise ValueError(f"path: {path}: row {twice[0] + 1}: client {ids[twice[0]]:.0f} is there twice")
    return {name: values[order] for name, values in numbers.items()}


def _columns(path: str, training_factor: float) -> dict[str, list]:
    """The columns of a trace, each as long as the others, with None where nothing stands."""
    found = located(path)
    if found.suffix in (".csv", ".parquet"):
        import pyarrow as pa
        import pyarrow.csv
        import pyarrow.parquet

        try:
            table = pyarrow.csv.read_csv(found) if found.suffix == ".csv" else pyarrow.parquet.read_table(found)
        except pa.ArrowInvalid as error:
            raise ValueError(f"path: {path}: {error}") from None
        return table.to_pydict()
    if found.suffix != ".json":
        raise ValueError(f"path: {path} is not .csv, .parquet or .json")
    entries = content(path)
    if isinstance(entries, dict):
        return _fedscale(path, entries, training_factor)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"path: {path} holds neither a list of records nor FedScale's capacities by client")
    names = dict.fromkeys(name for entry in entries for name in entry)
    return {name: [entry.get(name) for entry in entries] for name in names}


def _fedscale(path: str, entries: dict[str, Any], training_factor: float) -> dict[str, list]:
    """FedScale's capacities: milliseconds to infer a sample, kilobits a second."""
    found = by_id(entries, path)
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


def _numbers(path: str, name: str, values: list) -> np.ndarray:
    """(R,) float64, each a figure as it should be; ids are whole numbers."""
    numbers = np.zeros(len(values))
    for row, value in enumerate(values):
        if value is None or value == "":
            raise ValueError(f"path: {path}: row {row + 1}: {name} is missing")
        try:
            numbers[row] = math.nan if isinstance(value, bool) else value
        except (TypeError, ValueError):
            raise ValueError(f"path: {path}: row {row + 1}: {name} {value!r} is not a number") from None
    good = (numbers >= 0) & (numbers == np.floor(numbers)) if name == "client" else _good(name, numbers)
    if not good.all():
        row = np.flatnonzero(~good)[0]
        raise ValueError(f"path: {path}: row {row + 1}: {name} {values[row]} is not {_wanted(name)}")
    return numbers


def _good(name: str, values: np.ndarray) -> np.ndarray:
    return ((values >= 0) if name in MAY_BE_ZERO else (values > 0)) & (values < math.inf)


def _wanted(name: str) -> str:
    return {"client": "a whole number from 0"}.get(name) or (
        "a number from 0" if name in MAY_BE_ZERO else "a positive number"
    )


def _by_name(field: str, value: float | dict[str, float], figures: Figures) -> dict[str, float]:
    """The spread of each column: as named, or the same for all speeds that are given."""
    given = figures.given()
    if not isinstance(value, dict):
        return {name: value for name in SPEEDS if name in given}
    strange = sorted(value.keys() - given.keys())
    if strange:
        raise ValueError(f"{field}: {strange} have no figure beside it; given are {sorted(given)}")
    return dict(value)
