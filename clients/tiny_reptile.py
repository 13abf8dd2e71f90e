"""TinyReptile: a single pass over samples as they arrive, each used for one step and dropped.

    phi' = phi;    for each of S samples, in an order drawn for the round:    phi' <- phi' - beta grad L(phi'; sample)

Ren, Anicic, Runkler 2023, arXiv:2304.05201. beta is `lr`, S is `samples` (default: all that the client has). peak_samples is 1.
Differs from Reptile in this alone: batch is 1 and there is one epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clients.reptile import Reptile
from fl.registry import register


@register("client", "tiny_reptile")
@dataclass(frozen=True, kw_only=True)
class TinyReptile(Reptile):
    batch: int | Literal["full"] = 1

    def __post_init__(self):
        super().__post_init__()
        for name, only in (("batch", 1), ("epochs", 1), ("steps", None)):
            if getattr(self, name) != only:
                raise ValueError(
                    f"{name}: {getattr(self, name)} is not {only}; samples pass once, singly; reptile stores them"
                )

    def peak(self, ctx):
        return min(1, len(ctx.train))
