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
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fl import (
    ClientContext,
    Params,
    Step,
    StepContext,
    TrainingInputs,
    TrainingResult,
    Tree,
    checks,
    dot,
    register,
)

from .personal import Personal


def mixture(alpha: Tensor, personal: Params, shared: Params) -> Params:
    """Return alpha personal + (1 - alpha) shared."""
    return (alpha * personal).add_((1.0 - alpha) * shared)


def adapted(alpha: Tensor, personal: Params, shared: Params, gradient: Params, lr: float) -> Tensor:
    """Return alpha after a gradient step, clipped to [0, 1].

    The derivative is d f(mixture) / d alpha = <personal - shared, gradient at the mixture>.
    """
    return (alpha - lr * dot(personal - shared, gradient).double()).clamp(0, 1)


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

    def first_state(self, inputs: TrainingInputs) -> Tree:
        return {"personal": inputs.initial.trained, "alpha": torch.tensor(self.alpha, dtype=torch.float64)}

    def step_memory(self, at: StepContext) -> Mapping[str, Tree]:
        return at.state

    def step(self, step: Step) -> None:
        w, v, alpha = step.params, step.memory["personal"], step.memory["alpha"]
        at_shared, at_mixture = step.gradient(w), step.gradient(mixture(alpha, v, w))
        adapts = self.adaptive and step.t == 0
        next_alpha = adapted(alpha, v, w, at_mixture, self.alpha_lr) if adapts else alpha
        step.descend(at_shared)
        step.descend(at_mixture.mul_(alpha), "personal")
        if adapts:
            alpha.copy_(next_alpha)

    def finish(self, end: TrainingResult) -> tuple[Mapping[str, Tree], Tree]:
        return {"model": end.delta}, end.memory

    def metrics(self, end: TrainingResult) -> Mapping[str, Tensor]:
        return {"alpha": end.memory["alpha"]}

    def gradients_per_step(self) -> int:
        return 2

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        received = ctx.received["model"]
        if ctx.state is None:
            return ctx.net(received)
        return ctx.net(mixture(ctx.state["alpha"], ctx.state["personal"], received))
