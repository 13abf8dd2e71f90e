"""Ditto: the shared model is trained as by FedAvg; the client's own is trained beside it, held near what was received.

    w_i <- local steps from w;    v_i <- v_i - lr * (grad F_i(v_i) + lam (v_i - w));    send w_i - w, keep v_i

Li, Hu, Beirami, Smith 2021, arXiv:2012.04221, Algorithm 1. Both see the same batches. v_i begins as the run's first model; a client that
has none yet predicts with what it received. lam=0: v_i is local training alone.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from fl.method.context import Reply
from fl.method.local_training import LocalTraining
from fl.registry import register


@register("client", "ditto")
@dataclass(frozen=True, kw_only=True)
class Ditto(LocalTraining):
    lam: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        if self.lam < 0:
            raise ValueError(f"lam: {self.lam} is negative; 0 trains the own model alone")
        if self.lam == 0:
            logging.getLogger(__name__).warning("client: ditto with lam=0 is local training beside FedAvg")

    def gradient(self, grad, params, at):
        if "anchor" not in at.received or not self.lam:
            return grad
        return grad + self.lam * (params - at.received["anchor"].select(at.phase.trains))

    def finish(self, end):
        return ({}, end.params) if "anchor" in end.received else ({"model": end.delta}, None)

    def work(self, name, ctx, carry):
        shared, received = super().work(name, ctx, carry), ctx.received["model"]
        own = ctx.initial.trained if ctx.state is None else ctx.state
        beside = replace(ctx, received={"model": own, "anchor": received}, state=None)
        return Reply(shared.update, super().work(name, beside, carry).state)

    def gradients_per_step(self) -> int:
        return 2

    def predictor(self, ctx):
        return ctx.net(ctx.received["model"] if ctx.state is None else ctx.state)
