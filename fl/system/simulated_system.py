"""The drawn world: what each client's work takes, who breaks off, who is able to, what it burns.

    download = latency + down_bytes / down_rate
    compute  = samples * seconds_per_sample            or samples * flops_per_sample / flops_per_second
    upload   = latency + up_bytes / up_rate            with jitter sigma each times exp(sigma z), z standard normal

Draws are addressed by (seed, purpose, client, dispatch), dispatch the round; of an asynchronous server by (seed, purpose, dispatch),
dispatch the number of the start, see `fl.system.events`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from fl.system.availability import Presence
from fl.system.devices import Devices, lognormal_factors
from fl.tensors import random

LEGS = ("download", "compute", "upload")
CHANGES = 10_000  # at so many moments it is looked whether enough clients are there


@dataclass(frozen=True)
class Times:
    """Seconds (n,) of the three legs of each client's trip."""

    download: np.ndarray
    compute: np.ndarray
    upload: np.ndarray

    @property
    def total(self) -> np.ndarray:
        return self.download + self.compute + self.upload

    def __getitem__(self, rows: np.ndarray) -> Times:
        return Times(*(getattr(self, leg)[rows] for leg in LEGS))


@dataclass(frozen=True)
class SimulatedSystem:
    """Devices and presence of a population, and the rates of what goes wrong."""

    seed: int
    devices: Devices
    presence: Presence
    compute: Literal["samples", "flops"] = "samples"
    dropout: float = 0.0
    jitter: float = 0.0
    memory_bytes: float = 0.0  # that training takes; devices with less never take part

    def __len__(self) -> int:
        return len(self.devices)

    def times(
        self,
        clients: np.ndarray,
        samples: int | np.ndarray,
        down_bytes: int | np.ndarray,
        up_bytes: int | np.ndarray,
        dispatch: int | np.ndarray = 0,
        flops_per_sample: float = math.nan,
    ) -> Times:
        """What the legs of a trip take each of `clients` (n,). `samples` (n,): how many it trains on, every epoch counted."""
        d, clients = self.devices, np.asarray(clients)
        latency = d.latency_seconds[clients]
        if self.compute == "flops":
            if not flops_per_sample >= 0:
                raise ValueError(f"flops_per_sample: {flops_per_sample} is not known; compute: samples does without")
            compute = samples * (flops_per_sample / d.flops_per_second[clients])
        else:
            compute = samples * d.seconds_per_sample[clients]
        plain = Times(
            latency + down_bytes / d.down_bytes_per_second[clients],
            np.asarray(compute, float),
            latency + up_bytes / d.up_bytes_per_second[clients],
        )
        if not self.jitter:
            return plain
        address = clients, dispatch
        return Times(
            *(getattr(plain, leg) * lognormal_factors(self.jitter, self.seed, "jitter", leg, *address) for leg in LEGS)
        )

    def completes(self, clients: np.ndarray, dispatch: int | np.ndarray = 0) -> np.ndarray:
        """(n,): the share of its trip after which each client breaks off, uniform in [0, 1); 1 if it does not."""
        clients = np.asarray(clients)
        if not self.dropout:
            return np.ones(len(clients))
        drops = random.uniform(self.seed, "dropout", clients, dispatch) < self.dropout
        return np.where(drops, random.uniform(self.seed, "dropout", "share", clients, dispatch), 1.0)

    @cached_property
    def able(self) -> np.ndarray:
        """Ids, ascending, of those whose memory holds what training takes."""
        return np.flatnonzero(self.devices.memory_bytes >= self.memory_bytes)

    @property
    def always(self) -> bool:
        """Whether everybody can always take part."""
        return self.presence.always and len(self.able) == len(self)

    def joules(self, clients: np.ndarray, times: Times, spent: np.ndarray) -> np.ndarray:
        """(n,): compute_watts * seconds of compute + radio_watts * seconds of transfer, within the first `spent` (n,) seconds of
        the trip; NaN where watts are not known."""
        down = np.minimum(spent, times.download)
        compute = np.clip(spent - times.download, 0, times.compute)
        up = np.clip(spent - times.download - times.compute, 0, times.upload)
        d, clients = self.devices, np.asarray(clients)
        return d.compute_watts[clients] * compute + d.radio_watts[clients] * (down + up)

    def available(self, time: float) -> np.ndarray:
        """Ids, ascending, of who is there at `time`, and able."""
        return self.able if self.presence.always else self.able[self.presence.at(self.able, time)]

    def opens(self, needed: int, time: float) -> float:
        """The first time from `time` on at which at least `needed` clients are there; infinite if it does not come within so many
        comings and goings."""
        if needed > len(self.able):
            return math.inf
        if self.presence.always:
            return time
        for _ in range(CHANGES):
            if time == math.inf or self.presence.at(self.able, time).sum() >= needed:
                return time
            time = float(self.presence.until(self.able, time).min())
        return math.inf
