"""TinyMetaFed: rebuild the local part, then learn the global part online, and send the largest of its changes.

    1. local part, from its first value:   `rebuild_steps` steps on the first `rebuild` samples of the round, global part frozen
    2. global part, from what was received: a single pass over the other samples, one by one, local part frozen
    send the floor(share * entries) largest changes of the global part, of equal ones the first

Ren, Li, Anicic, Runkler 2023, arXiv:2307.06822, from its abstract. Which part is which and `share` come with the broadcast. A client
predicts with the local part rebuilt from its own samples; one without samples (the server's evaluation) with the first one.
peak_samples is what step 1 stores.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from clients.sgd import LocalSGD
from clients.tiny_reptile import TinyReptile
from fl.communication.codecs.top_k import keep_largest
from fl.data.views import View
from fl.method.context import ClientContext, Reply
from fl.method.messages import Update
from fl.registry import register
from fl.tensors import random
from fl.tensors.params import Params, join


@register("client", "tiny_metafed")
@dataclass(frozen=True, kw_only=True)
class TinyMetaFed(TinyReptile):
    """TinyReptile on the global part of the model, over a local part that each client rebuilds from few samples.

    Args:
        rebuild: number of samples that the local part is rebuilt from.
        rebuild_steps: full-batch steps of the rebuilding.
        rebuild_lr: learning rate of the rebuilding. Default: `lr` of the round.
    """

    rebuild: int = 8
    rebuild_steps: int = 8
    rebuild_lr: float | None = None

    receives: ClassVar[tuple[str, ...]] = ("model", "learnt", "share")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rebuild", "rebuild_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not at least 1")

    def start(self, given):
        return join(given.initial.trained, given.received["model"])

    def rebuilt(self, ctx: ClientContext) -> Params:
        """The model with the local part as the first `rebuild` training samples have it."""
        model = self.start(self.inputs(ctx))
        local = tuple(name for name in model if name not in ctx.config["learnt"])
        model = model.replace(ctx.initial.trained.select(local))
        if not len(ctx.train):
            return model
        lr = self.phases(ctx.round, ctx.rounds)[0].lr if self.rebuild_lr is None else self.rebuild_lr
        trainer = LocalSGD(batch="full", steps=self.rebuild_steps, lr=lr, clip=self.clip, trains=local)
        few = View(ctx.train.arrays, ctx.train.rows[: self.rebuild])
        whole = replace(ctx, received={"model": model}, train=few, limit=None)  # a deadline cuts the online steps
        return model + trainer.work("train", whole, None).update.groups["model"]

    def workload(
        self, sizes: np.ndarray, round_: int, rounds: int, name: str = "train"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Local steps are those of the global part; a deadline leaves the rebuilding whole."""
        rebuilding = self.extra_samples(sizes, round_, rounds, name)
        online = (sizes if self.samples is None else np.minimum(sizes, self.samples)) - rebuilding // self.rebuild_steps
        return online, online + rebuilding

    def extra_samples(self, sizes: np.ndarray, round_: int, rounds: int, name: str = "train") -> np.ndarray:
        drawn = sizes if self.samples is None else np.minimum(sizes, self.samples)
        return self.rebuild_steps * np.minimum(drawn, self.rebuild)

    def work(self, name, ctx, carry):
        learnt = ctx.config["learnt"]
        order = random.permutation(len(ctx.train), ctx.seed, ctx.client, ctx.participation, "samples")[: self.samples]
        ctx = replace(ctx, train=View(ctx.train.arrays, ctx.train.rows[order]))
        model = self.rebuilt(ctx)
        rest = View(ctx.train.arrays, ctx.train.rows[self.rebuild :])
        online = LocalSGD(batch=1, lr=self.lr, optimiser=self.optimiser, clip=self.clip, trains=tuple(learnt))
        reply = online.work("train", replace(ctx, received={"model": model}, train=rest), None)
        delta = reply.update.groups["model"].select(learnt).compact()
        sparse = keep_largest(delta, ctx.config["share"])
        peak = float(min(self.rebuild, len(ctx.train)))
        return Reply(Update({"model": sparse}, len(ctx.train), {**reply.update.metrics, "peak_samples": peak}))

    def predictor(self, ctx):
        return ctx.net(self.rebuilt(ctx))

    def context_after_training(self, ctx, reply):
        """With what was sent added to the global part."""
        learnt = self.start(self.inputs(ctx)).select(ctx.config["learnt"])
        sent = Params.expand(learnt.layout, reply.update.groups["model"].dense())
        return replace(ctx, received={**ctx.received, "model": learnt + sent})
