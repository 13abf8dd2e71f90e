"""TinyMetaFed: rebuild the local part, then learn the global part online, and send the largest of its changes.

    1. local part, from its initial values: `rebuild_steps` steps on the first `rebuild` samples, global part fixed
    2. global part, as received: a single pass over the other samples, one by one, local part fixed
    send the floor(share * entries) largest changes of the global part; among equal ones the first

Ren, Li, Anicic, Runkler 2023, arXiv:2307.06822, from its abstract.  The names of the global part and `share` come
with the broadcast.  A client predicts with the local part rebuilt from its own samples; one without samples (the
server's evaluation) with the initial one.  peak_samples is the number of samples that step 1 stores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from torch import Tensor

from fl import (
    ClientContext,
    Params,
    Reply,
    TrainingInputs,
    Tree,
    Update,
    View,
    checks,
    join,
    keep_largest,
    random,
    register,
)

from .sgd import LocalSGD
from .tiny_reptile import TinyReptile


@register("client", "tiny_metafed")
@dataclass(frozen=True, kw_only=True)
class TinyMetaFed(TinyReptile):
    """TinyReptile on the global part of the model, over a local part that each client rebuilds from few samples.

    Args:
        rebuild: number of samples that the local part is rebuilt from, at least 1.
        rebuild_steps: full-batch steps of the rebuilding, at least 1.
        rebuild_lr: learning rate of the rebuilding. Default: `lr` of the round.
    """

    rebuild: int = 8
    rebuild_steps: int = 8
    rebuild_lr: float | None = None

    receives: ClassVar[tuple[str, ...]] = ("model", "learnt", "share")

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least(1, rebuild=self.rebuild, rebuild_steps=self.rebuild_steps)

    def start(self, inputs: TrainingInputs) -> Params:
        return join(inputs.initial.trained, inputs.received["model"])

    def rebuilt(self, ctx: ClientContext) -> Params:
        """Return the model with the local part trained on the first `rebuild` samples."""
        model = self.start(self.inputs(ctx))
        local = tuple(name for name in model if name not in ctx.config["learnt"])
        model = model.replace(ctx.initial.trained.select(local))
        if not len(ctx.train):
            return model
        lr = self.phases(ctx.round, ctx.rounds)[0].lr if self.rebuild_lr is None else self.rebuild_lr
        trainer = LocalSGD(
            batch="full", steps=self.rebuild_steps, lr=lr, clip=self.clip, trains=local, rates=self.rates
        )
        few = View(ctx.train.arrays, ctx.train.rows[: self.rebuild])
        whole = replace(ctx, received={"model": model}, train=few, limit=None)  # a deadline cuts the online steps
        return model + trainer.work("train", whole, None).update.groups["model"]

    def workload(
        self, sizes: np.ndarray, round_: int, rounds: int, name: str = "train"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the online steps, and the samples of online steps and rebuilding; a deadline does not cut the
        latter."""
        rebuilding = self.extra_samples(sizes, round_, rounds, name)
        online = (sizes if self.samples is None else np.minimum(sizes, self.samples)) - rebuilding // self.rebuild_steps
        return online, online + rebuilding

    def extra_samples(self, sizes: np.ndarray, round_: int, rounds: int, name: str = "train") -> np.ndarray:
        drawn = sizes if self.samples is None else np.minimum(sizes, self.samples)
        return self.rebuild_steps * np.minimum(drawn, self.rebuild)

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        learnt = ctx.config["learnt"]
        order = random.permutation(len(ctx.train), ctx.seed, ctx.client, ctx.participation, "samples")[: self.samples]
        ctx = replace(ctx, train=View(ctx.train.arrays, ctx.train.rows[order]))
        model = self.rebuilt(ctx)
        rest = View(ctx.train.arrays, ctx.train.rows[self.rebuild :])
        online = LocalSGD(
            batch=1,
            lr=self.lr,
            optimiser=self.optimiser,
            clip=self.clip,
            trains=tuple(learnt),
            rates=self.rates,
        )
        reply = online.work("train", replace(ctx, received={"model": model}, train=rest), None)
        delta = reply.update.groups["model"].select(learnt).compact()
        sparse = keep_largest(delta, ctx.config["share"])
        peak = float(min(self.rebuild, len(ctx.train)))
        return Reply(Update({"model": sparse}, len(ctx.train), {**reply.update.metrics, "peak_samples": peak}))

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        return ctx.net(self.rebuilt(ctx))

    def context_after_training(self, ctx: ClientContext, reply: Reply) -> ClientContext:
        """Return the context with the sent changes added to the global part."""
        learnt = self.start(self.inputs(ctx)).select(ctx.config["learnt"])
        sent = Params.expand(learnt.layout, reply.update.groups["model"].dense())
        return replace(ctx, received={**ctx.received, "model": learnt + sent})
