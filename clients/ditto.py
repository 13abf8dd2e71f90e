"""Ditto: the shared model is trained as in FedAvg; the client also trains a personal model near the received one.

    w_i <- local steps from w;    v_i <- v_i - lr * (grad F_i(v_i) + lam (v_i - w));    send w_i - w, keep v_i

Li, Hu, Beirami, Smith 2021, arXiv:2012.04221, Algorithm 1.  Both use the same batches.  v_i starts with the initial
values; a client without a personal model predicts with the received one.
Equals local training: lam=0 trains v_i without the shared model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from fl import (
    ClientContext,
    LocalTraining,
    Params,
    Penalty,
    StepContext,
    TrainingInputs,
    Trainings,
    Tree,
    checks,
    register,
)


@register("client", "ditto")
@dataclass(frozen=True, kw_only=True)
class Ditto(LocalTraining):
    """A shared model, and a personal model near it.

    Args:
        lam: weight of the squared distance between the personal and the received model, at least 0.
    """

    lam: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.not_negative(lam=self.lam, hint="0 trains the personal model alone")
        if self.lam == 0:
            logging.getLogger(__name__).warning("client: ditto with lam=0 is local training beside FedAvg")

    def first_state(self, inputs: TrainingInputs) -> Tree:
        return inputs.initial.trained

    def start(self, inputs: TrainingInputs) -> Params:
        return inputs.state if inputs.training == "personal" else inputs.received["model"]

    def penalty(self, at: StepContext) -> Penalty | None:
        if at.training != "personal" or not self.lam:
            return None
        return Penalty(self.lam, at.received["model"].select(at.phase.trains))

    def trainings(self, inputs: TrainingInputs) -> Trainings:
        shared = yield inputs
        personal = yield replace(inputs, training="personal")
        return {"model": shared.delta}, personal.params

    def gradients_per_step(self) -> int:
        return 2

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        return ctx.net(ctx.received["model"] if ctx.state is None else ctx.state)
