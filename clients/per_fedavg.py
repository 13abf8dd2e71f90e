"""Per-FedAvg: local steps that make the model good after one more step.    per step, beta = lr:

    w <- w - beta (I - alpha H(w)) grad f(w - alpha grad f(w; D); D'),    H the Hessian on D''

Fallah, Mokhtari, Ozdaglar 2020, arXiv:2002.07948, Algorithm 1.  fo drops H; hf takes H g as (grad f(w + delta g) -
grad f(w - delta g)) / (2 delta), on D''.  The three batches come from three shuffles, each with its own Dropout
masks.  The client predicts after one step of alpha on all of its training data, in evaluation mode.  `optimiser`
takes the outer step.
Equals FedAvg: alpha=0, equal bits in the loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from fl import ClientContext, LocalSteps, Params, Step, checks, register, zeros_like

from .personal import Personal

BLOCK = 256  # samples per forward pass of the step before predicting


def hessian_free(gradient: Callable[[Params], Params], w: Params, g: Params, delta: float) -> Params:
    """Return H(w) g by central differences of the gradient."""
    move = delta * g
    return gradient(w + move).sub_(gradient(w - move)) / (2 * delta)


@register("client", "per_fedavg")
@dataclass(frozen=True, kw_only=True)
class PerFedAvg(Personal):
    """Local training towards a model that one step of each client makes good.

    Args:
        alpha: learning rate of that one step, at least 0. 0 is FedAvg.
        kind: `fo` drops the Hessian, `hf` takes its product with the gradient from a difference of two gradients.
        delta: distance of the two gradients of `hf`, positive.
    """

    alpha: float = 0.01
    kind: Literal["fo", "hf"] = "fo"
    delta: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of(("fo", "hf"), kind=self.kind)
        checks.not_negative(alpha=self.alpha, hint="0 is FedAvg")
        checks.positive(delta=self.delta, hint="kind: fo takes no differences")
        if self.alpha == 0:
            logging.getLogger(__name__).warning("client: per_fedavg with alpha=0 is FedAvg")

    def step(self, step: Step) -> None:
        w = step.params
        gradient = step.gradient(w - step.gradient(w, 1).mul_(self.alpha) if self.alpha else w)
        if self.kind == "hf" and self.alpha:
            product = hessian_free(lambda params: step.gradient(params, 2), w, gradient, self.delta)
            gradient.sub_(product.mul_(self.alpha))
        step.descend(gradient)

    def gradients_per_step(self) -> int:
        if not self.alpha:
            return 1
        return 2 if self.kind == "fo" else 4

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        received, n = ctx.received["model"], len(ctx.train)
        if not n or not self.alpha:
            return ctx.net(received)
        blocks = (ctx.train.take(slice(a, a + BLOCK)) for a in range(0, n, BLOCK))
        steps, total = LocalSteps(self, replace(ctx, limit=None), batches=blocks, training=False), zeros_like(received)
        for batch in steps:
            total = total + len(batch["x"]) / n * steps.gradient(received)
        return ctx.net(received - self.alpha * total)
