"""FedBABU: only the body trains, with the initial head; to predict, a client fine-tunes a copy.

    u <- local steps from received u, head fixed;    send u - received u
    predict with:  `tune_epochs` of steps on (u, head) over the client's own training data; the result is not kept

Oh, Kim, Yun 2022, arXiv:2106.06042.  The server, and clients with tune_epochs=0, predict with the initial head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from fl import ClientContext, LRSchedule, checks, register

from .partial import FixedPart, shared_names
from .sgd import LocalSGD


@register("client", "fedbabu")
@dataclass(frozen=True, kw_only=True)
class FedBABU(FixedPart):
    """Local training of the body; fine-tuning before predictions.

    Args:
        tune: tensors that are fine-tuned: `all` (the paper's default), `head` or `body`.
        tune_epochs: epochs of fine-tuning, at least 0. 0 predicts without fine-tuning.
        tune_lr: learning rate of fine-tuning, a number or a schedule. Default: `lr`.
    """

    tune: Literal["all", "head", "body"] = "all"
    tune_epochs: int = 5
    tune_lr: float | LRSchedule | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of(("all", "head", "body"), tune=self.tune)
        checks.not_negative(tune_epochs=self.tune_epochs, hint="0 predicts without fine-tuning")

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        body, head = shared_names(ctx), ctx.config.get("private", ())
        trains = {"all": None, "head": tuple(head), "body": tuple(body)}[self.tune]
        if not self.tune_epochs or not len(ctx.train) or trains == ():
            return super().predictor(ctx)
        lr = self.lr if self.tune_lr is None else self.tune_lr
        tuner = LocalSGD(
            epochs=self.tune_epochs,
            lr=lr,
            trains=trains,
            batch=self.batch,
            optimiser=self.optimiser,
            clip=self.clip,
            last_batch=self.last_batch,
            rates=self.rates,
        )
        whole = ctx.initial.trained.replace(ctx.received["model"].select(body))
        start = replace(ctx, received={"model": whole}, state=None)
        return tuner.predictor(tuner.context_after_training(start, tuner.work("train", start, None)))
