"""TinyReptile: Reptile for devices that hold one sample at a time.

    round t:  one device;   phi <- phi + alpha_t (phi' - phi),    alpha_t = alpha (1 - t / T)

Ren, Anicic, Runkler 2023, arXiv:2304.05201; phi' is what clients/tiny_reptile.py makes of phi in a single pass over its samples,
one by one. P floats down and P up a round with cohort: {size: 1}; for several devices the mean of their phi' is taken.
Written from the abstract and Reptile (arXiv:1803.02999): no program was released.
Neutral: none, as clients take single samples; of what comes up the server makes what FedAvg does with lr = alpha_t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fl.method.strategy import FedAvgEquivalent
from fl.registry import register
from strategies.reptile import Reptile


@register("strategy", "tiny_reptile")
@dataclass(frozen=True, kw_only=True)
class TinyReptile(Reptile):
    client: ClassVar[str] = "tiny_reptile"
    example_config: ClassVar[dict[str, Any]] = {"client.batch": 1, "client.epochs": 1}
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = None
