"""TinyReptile: a single pass over samples as they arrive; each is used for one step and dropped.

    phi' = phi;    for each of S samples, in an order drawn for the round:    phi' <- phi' - beta grad L(phi'; sample)

Ren, Anicic, Runkler 2023, arXiv:2304.05201.  beta is `lr`, S is `samples` (default: all of the client's).
peak_samples is 1.
Differs from Reptile: batch is 1 and there is one epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fl import ClientContext, register

from .reptile import Reptile


@register("client", "tiny_reptile")
@dataclass(frozen=True, kw_only=True)
class TinyReptile(Reptile):
    """Local training on single samples, each seen once.

    Args:
        batch: must be 1.
    """

    batch: int | Literal["full"] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, only in (("batch", 1), ("epochs", 1), ("steps", None)):
            if getattr(self, name) not in (only, None):
                raise ValueError(
                    f"{name}: {getattr(self, name)} is not {only}; each sample is used once, alone; use reptile"
                )

    def peak(self, ctx: ClientContext) -> int:
        return min(1, len(ctx.train))
