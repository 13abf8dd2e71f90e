"""Reptile's inner loop: local steps over samples that the client stores.    phi_i <- SGD from phi;    send phi_i - phi

Nichol, Achiam, Schulman 2018, arXiv:1803.02999. `samples`: how many of its training samples the client gathers for a round, drawn
anew (default: all). The metric peak_samples is how many of them it holds at once: all that it gathered.
Neutral: samples not given is local SGD.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fl.data.views import View
from fl.method.context import ClientContext, Reply
from fl.method.local_training import LocalTraining
from fl.registry import register
from fl.tensors import random


@register("client", "reptile")
@dataclass(frozen=True, kw_only=True)
class Reptile(LocalTraining):
    """Local training on some of the client's samples.

    Args:
        samples: number of training samples that a client draws for a round. Default: all.
    """

    samples: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"samples: {self.samples} is not at least 1")

    def gathered(self, ctx: ClientContext) -> ClientContext:
        """The context with the round's samples as training data."""
        if self.samples is None or self.samples >= len(ctx.train):
            return ctx
        order = random.permutation(len(ctx.train), ctx.seed, ctx.client, ctx.participation, "samples")
        return replace(ctx, train=View(ctx.train.arrays, ctx.train.rows[order[: self.samples]]))

    def peak(self, ctx: ClientContext) -> int:
        """Samples held at once."""
        return len(ctx.train)

    def workload(
        self, sizes: np.ndarray, round_: int, rounds: int, name: str = "train"
    ) -> tuple[np.ndarray, np.ndarray]:
        gathered = sizes if self.samples is None else np.minimum(sizes, self.samples)
        return super().workload(gathered, round_, rounds, name)

    def work(self, name, ctx, carry):
        ctx = self.gathered(ctx)
        return _measured(super().work(name, ctx, carry), self.peak(ctx))


def _measured(reply: Reply, peak: int) -> Reply:
    update = replace(reply.update, metrics={**reply.update.metrics, "peak_samples": float(peak)})
    return replace(reply, update=update)
