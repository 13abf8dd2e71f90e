"""Devices of clients: compute speed, bandwidth, latency, memory, power.

    draw(seed, clients) -> Devices      columns of shape (clients,)

Figures are in the units of `Figures`; columns are in seconds, bytes and watts. Draws have the address
(seed, "devices", column, client), so a client's device does not depend on the size of the population.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fl.checks import within
from fl.registry import register
from fl.tensors import random

# figure -> (column, value of one unit in the column, default)
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
SPEEDS = (
    "ms_per_sample",
    "gflops",
    "up_mbps",
    "down_mbps",
    "latency_ms",
)  # figures that a single sigma or alpha spreads
DURATIONS = ("ms_per_sample", "latency_ms")  # a slower device has a larger value; for the others a smaller one
MAY_BE_ZERO = ("ms_per_sample", "latency_ms", "compute_watts", "radio_watts")


@dataclass(frozen=True)
class Devices:
    """Devices of C clients: float64 columns (C,). NaN means unknown, infinity means no limit.

    `kind` (C,) int16 is an index into the class names `kinds`.
    """

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
    """Figures of a device.

    Args:
        ms_per_sample: Time to train on one sample, in milliseconds; at least 0. Default: unknown.
        gflops: Compute speed in 10^9 FLOPs per second; positive. Default: unknown.
        up_mbps: Upload bandwidth in 10^6 bits per second; positive. Default: no limit.
        down_mbps: Download bandwidth in 10^6 bits per second; positive. Default: no limit.
        latency_ms: Latency of a message in milliseconds; at least 0. Default: 0.
        memory_mb: Memory in 10^6 bytes; positive. Default: no limit.
        compute_watts: Power while computing, in watts; at least 0. Default: unknown.
        radio_watts: Power while sending or receiving, in watts; at least 0. Default: unknown.
    """

    ms_per_sample: float | None = None
    gflops: float | None = None
    up_mbps: float | None = None
    down_mbps: float | None = None
    latency_ms: float | None = None
    memory_mb: float | None = None
    compute_watts: float | None = None
    radio_watts: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.given().items():
            if not is_valid_figure(name, np.float64(value)):
                raise ValueError(f"{name}: {value} is not {valid_figures(name)}")

    def given(self) -> dict[str, float]:
        """Return the figures that are set."""
        return {name: getattr(self, name) for name in COLUMNS if getattr(self, name) is not None}


class DeviceModel:
    """Base of device models: frozen dataclasses of their hyper-parameters."""

    def draw(self, seed: int, clients: int) -> Devices:
        """Draw the devices of clients 0..clients-1. A `ValueError` if the model does not have enough devices."""
        raise NotImplementedError


def devices(figures: Mapping[str, Any], clients: int) -> Devices:
    """Convert figures, each a number or an array (clients,), to columns."""
    columns: dict[str, Any] = {}
    for name, (column, unit, missing) in COLUMNS.items():
        value = figures.get(name)
        columns[column] = (
            np.full(clients, missing) if value is None else np.broadcast_to(value * unit, clients).astype(float)
        )
    return Devices(**columns, kind=np.zeros(clients, np.int16))


def lognormal_factors(sigma: float, *address: Any) -> np.ndarray:
    """Return exp(sigma z) per address, z standard normal. The median is 1."""
    from scipy.special import ndtri

    return np.exp(sigma * ndtri(random.uniform(*address) + 2.0**-54))


def pareto_factors(alpha: float, *address: Any) -> np.ndarray:
    """Return (1 - u)^(-1 / alpha) per address, u uniform in [0, 1). It is at least 1, and P(factor > s) = s^-alpha."""
    return (1 - random.uniform(*address)) ** (-1 / alpha)


@register("devices", "identical")
@dataclass(frozen=True, kw_only=True)
class Identical(Figures, DeviceModel):
    """All clients have the same device. The hyper-parameters are those of `Figures`."""

    def draw(self, seed: int, clients: int) -> Devices:
        return devices(self.given(), clients)


@register("devices", "lognormal")
@dataclass(frozen=True, kw_only=True)
class Lognormal(Figures, DeviceModel):
    """Log-normal devices; the figures are medians.    x_c = x exp(sigma z_c), z_c standard normal per column

    Neutral: sigma=0 is `identical`. The other hyper-parameters are those of `Figures`.

    Args:
        sigma: Standard deviation of the logarithm, at least 0: a number for all speeds that are set (ms_per_sample,
            gflops, up_mbps, down_mbps, latency_ms), or a number per figure by name.
    """

    sigma: float | dict[str, float] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, sigma in _by_name("sigma", self.sigma, self).items():
            if not 0 <= sigma < math.inf:
                raise ValueError(f"sigma: {sigma} for {name} is not a number from 0")

    def draw(self, seed: int, clients: int) -> Devices:
        ids = np.arange(clients)
        figures: dict[str, Any] = dict(self.given())
        for name, sigma in _by_name("sigma", self.sigma, self).items():
            figures[name] = figures[name] * lognormal_factors(sigma, seed, "devices", name, ids)
        return devices(figures, clients)


@register("devices", "pareto")
@dataclass(frozen=True, kw_only=True)
class Pareto(Figures, DeviceModel):
    """Heavy-tailed devices; the figures describe the best device. Client c is s_c >= 1 times slower.

        ms_per_sample, latency_ms: x_c = x s_c            gflops, up_mbps, down_mbps, memory_mb, watts: x_c = x / s_c

    P(s_c > s) = s^-alpha, drawn independently per column. s_c has a mean for alpha > 1 only and a variance for alpha >
    2 only. A large alpha approaches `identical`. The other hyper-parameters are those of `Figures`.

    Args:
        alpha: Tail exponent, positive: a number for all speeds that are set, or a number per figure by name.
    """

    alpha: float | dict[str, float] = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, alpha in _by_name("alpha", self.alpha, self).items():
            if not alpha > 0:
                raise ValueError(f"alpha: {alpha} for {name} is not positive")

    def draw(self, seed: int, clients: int) -> Devices:
        ids = np.arange(clients)
        figures: dict[str, Any] = dict(self.given())
        for name, alpha in _by_name("alpha", self.alpha, self).items():
            slower = pareto_factors(alpha, seed, "devices", name, ids)
            figures[name] = figures[name] * slower if name in DURATIONS else figures[name] / slower
        return devices(figures, clients)


@dataclass(frozen=True, kw_only=True)
class DeviceClass(Figures):
    """A class of devices. The other hyper-parameters are those of `Figures`.

    Args:
        share: Probability that a client has a device of this class, in (0, 1].
        sigma: Standard deviation of the logarithm of the speeds, at least 0; see `lognormal`.
    """

    share: float
    sigma: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        within("(0, 1]", share=self.share)
        within("[0, inf)", sigma=self.sigma)


@register("devices", "classes")
@dataclass(frozen=True, kw_only=True)
class Classes(DeviceModel):
    """Classes of devices, such as phones and laptops. Each client's class is drawn with the probabilities `share`.

    Args:
        classes: Device classes by name. Their shares sum to 1.
    """

    classes: dict[str, DeviceClass]

    def __post_init__(self) -> None:
        total = sum(each.share for each in self.classes.values())
        if abs(total - 1) > 1e-6:
            raise ValueError(f"classes: the shares of {sorted(self.classes)} sum to {total:.6g} instead of 1")

    def draw(self, seed: int, clients: int) -> Devices:
        ids, (*shares, _) = np.arange(clients), np.cumsum([each.share for each in self.classes.values()])
        kind = np.searchsorted(shares, random.uniform(seed, "devices", "class", ids), side="right").astype(np.int16)
        drawn = [Lognormal(**each.given(), sigma=each.sigma).draw(seed, clients) for each in self.classes.values()]
        columns = {column: np.choose(kind, [getattr(d, column) for d in drawn]) for column, _, _ in COLUMNS.values()}
        return Devices(**columns, kind=kind, kinds=tuple(self.classes))


def is_valid_figure(name: str, values: np.ndarray | np.float64) -> np.ndarray:
    """Return for each of `values` whether figure `name` may have it."""
    return np.asarray(((values >= 0) if name in MAY_BE_ZERO else (values > 0)) & (values < math.inf))


def valid_figures(name: str) -> str:
    """Describe the allowed values of a figure, for an error message."""
    return {"client": "a whole number from 0"}.get(name) or (
        "a number from 0" if name in MAY_BE_ZERO else "a positive number"
    )


def _by_name(field: str, value: float | dict[str, float], figures: Figures) -> dict[str, float]:
    """Return the spread per figure: the given dict, or the same number for all speeds that are set."""
    given = figures.given()
    if not isinstance(value, dict):
        return {name: value for name in SPEEDS if name in given}
    strange = sorted(value.keys() - given.keys())
    if strange:
        raise ValueError(f"{field}: {strange} have no figure; the figures that are set are {sorted(given)}")
    return dict(value)
