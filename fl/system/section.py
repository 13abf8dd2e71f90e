"""The section `system:` of a configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fl.checks import not_negative, within
from fl.system.availability import Always, Availability
from fl.system.devices import DeviceModel
from fl.system.simulated_system import SimulatedSystem


@dataclass(frozen=True, kw_only=True)
class System:
    """Devices, availability and failures of the clients.

    Args:
        devices: speed, bandwidth and memory of each client's device.
        availability: the times at which each client is present.
        compute: unit of a client's computation: "samples" (devices have ms_per_sample), or measured "flops" (devices
            have gflops).
        dropout: probability that a client breaks off during a round trip, in [0, 1).
        jitter: standard deviation of the logarithm of a random factor on the duration of each download, computation and
            upload, 0 or more.
        up_bytes: bytes that a client sends in an exchange, 0 or more. None: computed. Give it where the size must be
            known before training and cannot be computed: with a codec whose size depends on the values, or with a group
            that was not broadcast.
        memory_mb: memory that training needs, in 10^6 bytes, 0 or more. Clients with less never take part.
    """

    devices: DeviceModel
    availability: Availability = field(default_factory=Always)
    compute: Literal["samples", "flops"] = "samples"
    dropout: float = 0.0
    jitter: float = 0.0
    up_bytes: int | None = None
    memory_mb: float = 0.0

    def __post_init__(self) -> None:
        within("[0, 1)", dropout=self.dropout)
        within("[0, inf)", jitter=self.jitter, memory_mb=self.memory_mb)
        not_negative(up_bytes=self.up_bytes)

    def draw(self, seed: int, population: int) -> SimulatedSystem:
        """Draw the simulated system of a run. A `ValueError` if the parts do not fit the population."""
        devices = self.devices.draw(seed, population)
        figure, column = {
            "samples": ("ms_per_sample", devices.seconds_per_sample),
            "flops": ("gflops", devices.flops_per_second),
        }[self.compute]
        unknown = np.flatnonzero(np.isnan(column))
        if len(unknown):
            raise ValueError(
                f"compute: {self.compute!r} needs {figure} of all devices, and client {unknown[0]} has none"
            )
        presence = self.availability.draw(seed, population)
        system = SimulatedSystem(seed, devices, presence, self.compute, self.dropout, self.jitter, self.memory_mb * 1e6)
        if not len(system.able):
            largest = devices.memory_bytes.max() / 1e6
            raise ValueError(f"memory_mb: {self.memory_mb:g} is more than any device has; the largest has {largest:g}")
        return system
