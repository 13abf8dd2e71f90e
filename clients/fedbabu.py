"""FedBABU: only the body trains, below a head that stays as the run began; to predict, a client fine-tunes a copy.

    u <- local steps from received u, head fixed;    send u - received u
    predict with:  `tune_epochs` of steps on (u, head) over the client's own training data; kept by nobody

Oh, Kim, Yun 2022, arXiv:2106.06042. `tune` says what is fine-tuned: all (the paper's default), the head or the body. The server, and
tune_epochs=0, predict with the first head.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from clients.partial import shared
from clients.sgd import LocalSGD
from fl.method.local_training import LocalTraining
from fl.method.optimiser import LRSchedule
from fl.registry import register


@register("client", "fedbabu")
@dataclass(frozen=True, kw_only=True)
class FedBABU(LocalTraining):
    tune: Literal["all", "head", "body"] = "all"
    tune_epochs: int = 5
    tune_lr: float | LRSchedule | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.tune not in ("all", "head", "body"):
            raise ValueError(f"tune: {self.tune!r} is not one of ['all', 'head', 'body']")
        if self.tune_epochs < 0:
            raise ValueError(f"tune_epochs: {self.tune_epochs} is negative; 0 predicts without fine-tuning")

    def start(self, given):
        return given.received["model"].select(shared(given))  # the rest is as the run began

    def phases(self, round_, rounds):
        (phase,) = super().phases(round_, rounds)
        return (replace(phase, trains=self.trains or ("*",)),)  # of the body: the head is not among the parameters

    def context_after_training(self, ctx, reply):
        received, change = ctx.received["model"], reply.update.groups["model"]
        moved = received.added(change)
        return replace(ctx, received={**ctx.received, "model": moved})

    def predictor(self, ctx):
        body, head = shared(ctx), ctx.config.get("own", ())
        trains = {"all": None, "head": tuple(head), "body": tuple(body)}[self.tune]
        if not self.tune_epochs or not len(ctx.train) or trains == ():
            return super().predictor(ctx)
        lr = self.lr if self.tune_lr is None else self.tune_lr
        same = {"batch": self.batch, "optimiser": self.optimiser, "clip": self.clip}
        tuner = LocalSGD(epochs=self.tune_epochs, lr=lr, trains=trains, **same)
        whole = ctx.initial.trained.replace(ctx.received["model"].select(body))
        begun = replace(ctx, received={"model": whole}, state=None)
        return tuner.predictor(tuner.context_after_training(begun, tuner.work("train", begun, None)))
