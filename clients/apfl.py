"""APFL: the client's personal model is mixed with the shared one.    mixed = alpha v + (1 - alpha) w;    per mini-batch

    w <- w - lr grad f(w);    v <- v - lr alpha grad f(mixed);    send w - received, keep v (and alpha)

Deng, Kamani, Mahdavi 2020, arXiv:2003.13461, Algorithm 1.  adaptive: once a round, at its first batch, alpha <-
clip(alpha - alpha_lr <v - w, grad f(mixed)>, 0, 1)  (eq. 10).  v starts with the initial values.  The client predicts
with the mixture of v and the received model; before v was trained, with the received model.  Both gradients of a
batch use the same Dropout masks.
Equals FedAvg: alpha=0, equal bits in the loop.  alpha=1 is local training.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fl import ClientContext, Descent, LocalSteps, Params, Reply, Tree, Update, checks, dot, register

from .personal import Personal


def mixture(alpha: float, personal: Params, shared: Params) -> Params:
    """Return alpha personal + (1 - alpha) shared."""
    return alpha * personal + (1.0 - alpha) * shared


def adapted(alpha: float, personal: Params, shared: Params, gradient: Params, lr: float) -> float:
    """Return alpha after a gradient step, clipped to [0, 1].

    The derivative is d f(mixture) / d alpha = <personal - shared, gradient at the mixture>.
    """
    return min(1.0, max(0.0, alpha - lr * float(dot(personal - shared, gradient))))


@register("client", "apfl")
@dataclass(frozen=True, kw_only=True)
class APFL(Personal):
    """A shared and a personal model, both trained on the same batches.

    Args:
        alpha: weight of the personal model in the mixture, in [0, 1]; the first value if `adaptive`. 0 is FedAvg.
        adaptive: learn alpha, one step in each round.
        alpha_lr: learning rate of alpha, at least 0. Used with `adaptive`.
    """

    alpha: float = 0.5
    adaptive: bool = False
    alpha_lr: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.within("[0, 1]", alpha=self.alpha, hint="0 is FedAvg, 1 is local training")
        checks.not_negative(alpha_lr=self.alpha_lr, hint="adaptive=false keeps alpha")
        if self.alpha in (0, 1) and not self.adaptive:
            same = "local training" if self.alpha else "FedAvg"
            logging.getLogger(__name__).warning("client: apfl with alpha=%g predicts as %s does", self.alpha, same)

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        steps, received = LocalSteps(self, ctx), ctx.received["model"]
        w = received.clone()
        v = ctx.initial.trained.clone() if ctx.state is None else ctx.state["personal"].clone()
        alpha = self.alpha if ctx.state is None else float(ctx.state["alpha"])
        shared, personal = Descent(steps.phase, w), Descent(steps.phase, v)
        for t, _ in enumerate(steps):
            at_shared, at_mixture, weight = steps.gradient(w), steps.gradient(mixture(alpha, v, w)), alpha
            if self.adaptive and t == 0:
                alpha = adapted(alpha, v, w, at_mixture, self.alpha_lr)
            shared.step(at_shared)
            personal.step(weight * at_mixture)
        state = {"personal": v, "alpha": torch.tensor(alpha, dtype=torch.float64)}
        return Reply(Update({"model": w - received}, len(ctx.train), {"loss": steps.loss, "alpha": alpha}), state)

    def gradients_per_step(self) -> int:
        return 2

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        received = ctx.received["model"]
        if ctx.state is None:
            return ctx.net(received)
        return ctx.net(mixture(float(ctx.state["alpha"]), ctx.state["personal"], received))
