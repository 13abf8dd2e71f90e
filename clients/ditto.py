"""Ditto: the shared model is trained as in FedAvg; the client also trains a personal model near the received one.

    w_i <- local steps from w;    v_i <- v_i - lr * (grad F_i(v_i) + lam (v_i - w));    send w_i - w, keep v_i

Li, Hu, Beirami, Smith 2021, arXiv:2012.04221, Algorithm 1.  Both use the same batches.  v_i starts with the initial
values; a client without a personal model predicts with the received one.
Equals local training: lam=0 trains v_i without the shared model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from fl import ClientContext, LocalTraining, Penalty, Reply, StepContext, TrainingResult, Tree, checks, register


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

    def penalty(self, at: StepContext) -> Penalty | None:
        if "anchor" not in at.received or not self.lam:
            return None
        return Penalty(self.lam, at.received["anchor"].select(at.phase.trains))

    def finish(self, end: TrainingResult) -> tuple[Mapping[str, Tree], Tree]:
        return ({}, end.params) if "anchor" in end.received else ({"model": end.delta}, None)

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        shared, received = super().work(name, ctx, carry), ctx.received["model"]
        personal = ctx.initial.trained if ctx.state is None else ctx.state
        personal_ctx = replace(ctx, received={"model": personal, "anchor": received}, state=None)
        return Reply(shared.update, super().work(name, personal_ctx, carry).state)

    def gradients_per_step(self) -> int:
        return 2

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        return ctx.net(ctx.received["model"] if ctx.state is None else ctx.state)
