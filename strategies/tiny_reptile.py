"""TinyReptile: Reptile for devices that hold one sample at a time.

    round t:  one device;   phi <- phi + alpha_t (phi' - phi),    alpha_t = alpha (1 - t / T)

Ren, Anicic, Runkler 2023, arXiv:2304.05201; phi' is the result of clients/tiny_reptile.py after a single pass over the
samples, one by one.  With cohort: {size: 1} a round costs P floats down and P up; for several devices the mean of their
phi' is taken.
Written from the abstract and Reptile (arXiv:1803.02999): no program was released.
Equals FedAvg: no setting, as clients take single samples.  The server step is FedAvg's with lr = alpha_t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fl import FedAvgEquivalent, register

from .reptile import Reptile


@register("strategy", "tiny_reptile")
@dataclass(frozen=True, kw_only=True)
class TinyReptile(Reptile):
    """Reptile over clients that see each sample once."""

    client: ClassVar[str] = "tiny_reptile"
    example_config: ClassVar[dict[str, Any]] = {"client.batch": 1, "client.epochs": 1}
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = None
