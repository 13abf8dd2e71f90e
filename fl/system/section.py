"""The section `system:` of a configuration: its parts, and the world that is drawn of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fl.system.availability import Always, Availability
from fl.system.devices import DeviceModel
from fl.system.simulated_system import SimulatedSystem


@dataclass(frozen=True, kw_only=True)
class System:
    """devices: who has which. availability: who is there when.

    compute: what a trip's computation is counted in, `samples` (devices need ms_per_sample) or measured `flops` (gflops). dropout:
    the probability that a client breaks off in the middle of a trip. jitter: the deviation of log-normal factors on each leg.
    up_bytes: what a client sends in an exchange, declared: where it has to be known before anybody trains and is not (a codec whose
    size depends on the numbers, a group that is not what came down). memory_mb: what training takes, in 10^6 bytes; clients with
    less on their devices never take part.
    """

    devices: DeviceModel
    availability: Availability = field(default_factory=Always)
    compute: Literal["samples", "flops"] = "samples"
    dropout: float = 0.0
    jitter: float = 0.0
    up_bytes: int | None = None
    memory_mb: float = 0.0

    def __post_init__(self):
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: {self.dropout} is not in [0, 1)")
        if not 0 <= self.jitter < math.inf:
            raise ValueError(f"jitter: {self.jitter} is not a number from 0")
        if not 0 <= self.memory_mb < math.inf:
            raise ValueError(f"memory_mb: {self.memory_mb} is not a number from 0")
        if self.up_bytes is not None and self.up_bytes < 0:
            raise ValueError(f"up_bytes: {self.up_bytes} is negative")

    def draw(self, seed: int, population: int) -> SimulatedSystem:
        """The world of a run; a `ValueError` if the parts do not fit it."""
        devices = self.devices.draw(seed, population)
        figure, column = {
            "samples": ("ms_per_sample", devices.seconds_per_sample),
            "flops": ("gflops", devices.flops_per_second),
        }[self.compute]
        unknown = np.flatnonzero(np.isnan(column))
        if len(unknown):
            raise ValueError(f"compute: {self.compute!r} needs {figure} of all devices; client {unknown[0]} has none")
        presence = self.availability.draw(seed, population)
        world = SimulatedSystem(seed, devices, presence, self.compute, self.dropout, self.jitter, self.memory_mb * 1e6)
        if not len(world.able):
            most = devices.memory_bytes.max() / 1e6
            raise ValueError(f"memory_mb: {self.memory_mb:g} is more than any device has; the largest has {most:g}")
        return world
