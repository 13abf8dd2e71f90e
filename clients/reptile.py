"""Reptile's inner loop: local steps over samples that the client stores.    phi_i <- SGD from phi;    send phi_i - phi

Nichol, Achiam, Schulman 2018, arXiv:1803.02999.  The metric peak_samples is the number of samples that the client
holds at once: all that it gathered for the round.
Equals local SGD: without `samples`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fl import ClientContext, LocalTraining, Reply, Tree, View, checks, random, register


@register("client", "reptile")
@dataclass(frozen=True, kw_only=True)
class Reptile(LocalTraining):
    """Local training on some of the client's samples.

    Args:
        samples: number of training samples that a client draws for a round, at least 1. Default: all.
    """

    samples: int | None = None  # type: ignore[assignment]  # the number hides a hook that this client does not use

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least(1, samples=self.samples)

    def gathered(self, ctx: ClientContext) -> ClientContext:
        """Return the context with the round's samples as training data."""
        if self.samples is None or self.samples >= len(ctx.train):
            return ctx
        order = random.permutation(len(ctx.train), ctx.seed, ctx.client, ctx.participation, "samples")
        return replace(ctx, train=View(ctx.train.arrays, ctx.train.rows[order[: self.samples]]))

    def peak(self, ctx: ClientContext) -> int:
        """Return the number of samples held at once."""
        return len(ctx.train)

    def workload(
        self, sizes: np.ndarray, round_: int, rounds: int, name: str = "train"
    ) -> tuple[np.ndarray, np.ndarray]:
        gathered = sizes if self.samples is None else np.minimum(sizes, self.samples)
        return super().workload(gathered, round_, rounds, name)

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        ctx = self.gathered(ctx)
        reply = super().work(name, ctx, carry)
        metrics = {**reply.update.metrics, "peak_samples": float(self.peak(ctx))}
        return replace(reply, update=replace(reply.update, metrics=metrics))
