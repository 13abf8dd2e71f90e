"""The simulated system: durations, drop-outs, eligible clients and energy.

    download = handshake + latency + down_bytes / down_rate
    compute  = samples * seconds_per_sample            or samples * flops_per_sample / flops_per_second
    upload   = latency + up_bytes / up_rate            jitter multiplies each leg by exp(jitter z), z standard normal

Draws have the address (seed, purpose, client, dispatch), where dispatch is the round. Draws of an asynchronous server
have the address (seed, purpose, dispatch), where dispatch counts the starts of clients (`fl.system.dispatch_draws`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from fl.system.availability import Presence
from fl.system.devices import Devices, lognormal_factors
from fl.tensors import random

LEGS = ("download", "compute", "upload")
MAX_CHANGES = 10_000  # `opens` examines this many changes of presence


@dataclass(frozen=True)
class Times:
    """Seconds (n,) of the three legs of each client's round trip."""

    download: np.ndarray
    compute: np.ndarray
    upload: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """Seconds of the whole round trip, (n,)."""
        return self.download + self.compute + self.upload

    def __getitem__(self, rows: np.ndarray) -> Times:
        return Times(*(getattr(self, leg)[rows] for leg in LEGS))


@dataclass(frozen=True)
class SimulatedSystem:
    """Devices and presence of a population, with the probability of drop-outs and the jitter."""

    seed: int
    devices: Devices
    presence: Presence
    compute: Literal["samples", "flops"] = "samples"
    dropout: float = 0.0
    jitter: float = 0.0
    memory_bytes: float = 0.0  # needed for training; clients with less never take part
    handshake_seconds: float = 0.0  # before each download, without jitter: the key exchange of secure aggregation

    def __len__(self) -> int:
        return len(self.devices)

    def times(
        self,
        clients: np.ndarray,
        samples: int | np.ndarray,
        down_bytes: int | np.ndarray,
        up_bytes: int | np.ndarray,
        dispatch: int | np.ndarray = 0,
        flops_per_sample: float | np.ndarray = math.nan,
    ) -> Times:
        """Return the durations of a round trip.

        Args:
            clients: (n,) ids.
            samples: (n,) number of samples processed, each epoch counted.
            down_bytes: (n,) bytes received.
            up_bytes: (n,) bytes sent.
            dispatch: Part of the address of the jitter, see the module.
            flops_per_sample: FLOPs to train on one sample, a number or (n,); needed with `compute: flops`.
        """
        d, clients = self.devices, np.asarray(clients)
        latency = d.latency_seconds[clients]
        if self.compute == "flops":
            if not np.all(np.asarray(flops_per_sample) >= 0):
                raise ValueError(f"flops_per_sample: {flops_per_sample} is unknown; use compute: samples")
            compute = samples * (flops_per_sample / d.flops_per_second[clients])
        else:
            compute = samples * d.seconds_per_sample[clients]
        plain = Times(
            latency + down_bytes / d.down_bytes_per_second[clients],
            np.asarray(compute, float),
            latency + up_bytes / d.up_bytes_per_second[clients],
        )
        times = plain
        if self.jitter:
            address = clients, dispatch
            factors = (lognormal_factors(self.jitter, self.seed, "jitter", leg, *address) for leg in LEGS)
            times = Times(*(getattr(plain, leg) * factor for leg, factor in zip(LEGS, factors)))
        return replace(times, download=times.download + self.handshake_seconds) if self.handshake_seconds else times

    def completes(self, clients: np.ndarray, dispatch: int | np.ndarray = 0) -> np.ndarray:
        """Return (n,): the share of the round trip before a drop-out, uniform in [0, 1); 1: no drop-out."""
        clients = np.asarray(clients)
        if not self.dropout:
            return np.ones(len(clients))
        drops = random.uniform(self.seed, "dropout", clients, dispatch) < self.dropout
        return np.where(drops, random.uniform(self.seed, "dropout", "share", clients, dispatch), 1.0)

    @cached_property
    def able(self) -> np.ndarray:
        """Ids, ascending, of the clients with enough memory for training."""
        return np.flatnonzero(self.devices.memory_bytes >= self.memory_bytes)

    @property
    def always(self) -> bool:
        """Whether all clients can take part at all times."""
        return self.presence.always and len(self.able) == len(self)

    def joules(self, clients: np.ndarray, times: Times, spent: np.ndarray) -> np.ndarray:
        """Return the energy (n,) used in the first `spent` (n,) seconds of the round trip; NaN if the power is unknown.

        joules = compute_watts * seconds of compute + radio_watts * seconds of transfer
        """
        down = np.minimum(spent, times.download)
        compute = np.clip(spent - times.download, 0, times.compute)
        up = np.clip(spent - times.download - times.compute, 0, times.upload)
        d, clients = self.devices, np.asarray(clients)
        return d.compute_watts[clients] * compute + d.radio_watts[clients] * (down + up)

    def available(self, time: float) -> np.ndarray:
        """Return the ids, ascending, of the eligible clients that are present at `time`."""
        return self.able if self.presence.always else self.able[self.presence.at(self.able, time)]

    def opens(self, needed: int, time: float) -> float:
        """Return the first time from `time` on at which at least `needed` clients are present.

        It is infinite if there is no such time within MAX_CHANGES changes of presence.
        """
        if needed > len(self.able):
            return math.inf
        if self.presence.always:
            return time
        for _ in range(MAX_CHANGES):
            if time == math.inf or self.presence.at(self.able, time).sum() >= needed:
                return time
            time = float(self.presence.until(self.able, time).min())
        return math.inf
