"""APFL: the client's own model is mixed with the shared one.    mixed = alpha v + (1 - alpha) w;    per mini-batch

    w <- w - lr grad f(w);    v <- v - lr alpha grad f(mixed);    send w - received, keep v (and alpha)

Deng, Kamani, Mahdavi 2020, arXiv:2003.13461, Algorithm 1. adaptive: once a round, at its first batch,
alpha <- clip(alpha - alpha_lr <v - w, grad f(mixed)>, 0, 1)  (eq. 10). v begins as the run's first model; predicts with the mixture of v and
what was received, and before v was trained with what was received. Both gradients of a batch see the same Dropout
masks. alpha=0: FedAvg, to the bit in a loop; alpha=1: local training.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clients.personal import Personal
from fl.execution.training.steps import Descent, LocalSteps
from fl.method.context import ClientContext, Reply
from fl.method.messages import Update
from fl.registry import register
from fl.tensors.params import Params, dot
from fl.tensors.trees import Tree


def mixture(alpha: float, own: Params, shared: Params) -> Params:
    """alpha own + (1 - alpha) shared."""
    return alpha * own + (1.0 - alpha) * shared


def adapted(alpha: float, own: Params, shared: Params, gradient: Params, lr: float) -> float:
    """alpha after a step along d f(mixture) / d alpha = <own - shared, gradient at the mixture>, kept in [0, 1]."""
    return min(1.0, max(0.0, alpha - lr * float(dot(own - shared, gradient))))


@register("client", "apfl")
@dataclass(frozen=True, kw_only=True)
class APFL(Personal):
    """A shared model and the client's own, both trained on the same batches.

    Args:
        alpha: weight of the client's own model in the mixture, in [0, 1]. With `adaptive` the first value.
        adaptive: learn alpha, one step in each round.
        alpha_lr: learning rate of alpha, at least 0. Used with `adaptive`.
    """

    alpha: float = 0.5
    adaptive: bool = False
    alpha_lr: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha: {self.alpha} is not in [0, 1]; 0 is FedAvg, 1 is local training")
        if self.alpha_lr < 0:
            raise ValueError(f"alpha_lr: {self.alpha_lr} is negative; adaptive=false keeps alpha")
        if self.alpha in (0, 1) and not self.adaptive:
            same = "local training" if self.alpha else "FedAvg"
            logging.getLogger(__name__).warning("client: apfl with alpha=%g predicts as %s does", self.alpha, same)

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        steps, received = LocalSteps(self, ctx), ctx.received["model"]
        w = received.clone()
        v = ctx.initial.trained.clone() if ctx.state is None else ctx.state["own"].clone()
        alpha = self.alpha if ctx.state is None else float(ctx.state["alpha"])
        shared, own = Descent(steps.phase, w), Descent(steps.phase, v)
        for t, _ in enumerate(steps):
            at_shared, at_mixture, weight = steps.gradient(w), steps.gradient(mixture(alpha, v, w)), alpha
            if self.adaptive and t == 0:
                alpha = adapted(alpha, v, w, at_mixture, self.alpha_lr)
            shared.step(at_shared)
            own.step(weight * at_mixture)
        state = {"own": v, "alpha": torch.tensor(alpha, dtype=torch.float64)}
        return Reply(Update({"model": w - received}, len(ctx.train), {"loss": steps.loss, "alpha": alpha}), state)

    def gradients_per_step(self) -> int:
        return 2

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        received = ctx.received["model"]
        if ctx.state is None:
            return ctx.net(received)
        return ctx.net(mixture(float(ctx.state["alpha"]), ctx.state["own"], received))
