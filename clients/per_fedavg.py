"""Per-FedAvg: local steps that make the model good after one more step.    per step, beta = lr:

    w <- w - beta (I - alpha H(w)) grad f(w - alpha grad f(w; D); D'),    H the Hessian on D''

Fallah, Mokhtari, Ozdaglar 2020, arXiv:2002.07948, Algorithm 1. fo drops H; hf takes H g as (grad f(w + delta g) - grad f(w - delta g)) / (2 delta),
on D''. The three batches come from three shuffles. Predicts after one step of alpha on all of the client's training data. `optimiser` takes the
outer step. Neutral: alpha=0 is FedAvg.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from clients.personal import Personal, Steps
from fl.method.client import Reply
from fl.method.messages import Update
from fl.registry import register
from fl.tensors.params import Params, zeros_like

BLOCK = 256  # samples per forward pass of the step before predicting


def hessian_free(gradient: Callable[[Params], Params], w: Params, g: Params, delta: float) -> Params:
    """H(w) g by central differences of the gradient."""
    return (gradient(w + delta * g) - gradient(w - delta * g)) / (2 * delta)


@register("client", "per_fedavg")
@dataclass(frozen=True, kw_only=True)
class PerFedAvg(Personal):
    alpha: float = 0.01
    kind: Literal["fo", "hf"] = "fo"
    delta: float = 0.001

    def __post_init__(self):
        super().__post_init__()
        if self.kind not in ("fo", "hf"):
            raise ValueError(f"kind: {self.kind!r} is not one of ['fo', 'hf']")
        if self.alpha < 0:
            raise ValueError(f"alpha: {self.alpha} is negative; 0 is FedAvg")
        if self.delta <= 0:
            raise ValueError(f"delta: {self.delta} is not positive; kind: fo takes no differences")
        if self.alpha == 0:
            logging.getLogger(__name__).warning("client: per_fedavg with alpha=0 is FedAvg")

    def work(self, name, ctx, carry):
        steps, received = Steps(self, ctx), ctx.received["model"]
        w = received.clone()
        memory = steps.memory(w)
        for outer, inner, third in zip(*(steps.batches(index) for index in range(3))):
            tried = w - self.alpha * steps.gradient(w, inner)[0] if self.alpha else w
            step, losses = steps.gradient(tried, outer)
            steps.note(losses)
            if self.kind == "hf" and self.alpha:
                curved = hessian_free(lambda p, batch=third: steps.gradient(p, batch)[0], w, step, self.delta)
                step = step - self.alpha * curved
            memory.descend(w, step)
        return Reply(Update({"model": w - received}, len(ctx.train), {"loss": steps.loss}))

    def predictor(self, ctx):
        received, n = ctx.received["model"], len(ctx.train)
        if not n or not self.alpha:
            return ctx.net(received)
        steps, total = Steps(self, ctx), zeros_like(received)
        for a in range(0, n, BLOCK):
            batch = ctx.train.take(slice(a, a + BLOCK))
            total = total + len(batch["x"]) / n * steps.gradient(received, batch)[0]
        return ctx.net(received - self.alpha * total)
