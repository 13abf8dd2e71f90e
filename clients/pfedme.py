"""pFedMe: local steps on the Moreau envelope of the client's loss.    per mini-batch, eta = lr:

    theta <- K steps of inner_lr on  f(theta; batch) + lam/2 |theta - w|^2;    w <- w - eta lam (w - theta);    send w - received

Dinh, Tran, Nguyen 2020, arXiv:2006.08848, Algorithm 1. Keeps and predicts with theta; a client that has none yet predicts with what it received.
As in the authors' program theta begins at the received model and goes on from batch to batch; the paper's lam 15, K 5, eta .005 are the defaults.
Differs from the paper: the step on w is the plain one, `optimiser` takes the inner ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from clients.personal import Personal, Steps
from fl.method.client import Reply
from fl.method.messages import Update
from fl.method.optimiser import LRSchedule
from fl.registry import register
from fl.tensors.params import Params


def envelope_step(w: Params, theta: Params, eta: float, lam: float) -> Params:
    """w - eta lam (w - theta): a gradient step on min_t f(t) + lam/2 |t - w|^2, theta being the minimiser."""
    return w - (eta * lam) * (w - theta)


@register("client", "pfedme")
@dataclass(frozen=True, kw_only=True)
class PFedMe(Personal):
    lam: float = 15.0
    inner_steps: int = 5
    inner_lr: float = 0.01
    lr: float | LRSchedule = 0.005

    def __post_init__(self):
        super().__post_init__()
        for name in ("lam", "inner_steps", "inner_lr"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: {getattr(self, name)} is not positive")
        if self.inner_lr * self.lam >= 2:
            raise ValueError(
                f"inner_lr: {self.inner_lr} times lam {self.lam} is 2 or more, which diverges; take a smaller one"
            )

    def work(self, name, ctx, carry):
        steps, received = Steps(self, ctx), ctx.received["model"]
        w, theta = received, received.clone()
        memory = steps.memory(theta)
        memory.phase = memory.phase.at_rate(self.inner_lr, ctx.round, ctx.rounds)
        for t, batch in enumerate(steps.batches()):
            for k in range(self.inner_steps):
                gradient, losses = steps.gradient(theta, batch)
                if k == 0:
                    steps.note(losses)
                memory.descend(theta, gradient + self.lam * (theta - w))
            w = envelope_step(w, theta, steps.phase.rate(t), self.lam)
        return Reply(Update({"model": w - received}, len(ctx.train), {"loss": steps.loss}), theta)

    def predictor(self, ctx):
        return ctx.net(ctx.received["model"] if ctx.state is None else ctx.state)
