"""pFedMe: local steps on the Moreau envelope of the client's loss.    per mini-batch, eta = lr:

    theta <- K steps of inner_lr on  f(theta; batch) + lam/2 |theta - w|^2
    w <- w - eta lam (w - theta);    send w - received

Dinh, Tran, Nguyen 2020, arXiv:2006.08848, Algorithm 1.  The client keeps theta and predicts with it; without a theta
it predicts with the received model.  As in the authors' program theta starts at the received model and continues from
batch to batch; the paper's lam 15, K 5, eta .005 are the defaults.  All inner steps of a batch use the same Dropout
masks.
Differs from the paper: the step on w is the plain one, `optimiser` takes the inner steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from fl import ClientContext, LRSchedule, Params, Step, StepContext, TrainingResult, Tree, checks, register

from .personal import Personal


def envelope_step(w: Params, theta: Params, eta: float, lam: float) -> Params:
    """Return w - eta lam (w - theta): a gradient step on min_t f(t) + lam/2 |t - w|^2, with theta the minimiser."""
    return w - (eta * lam) * (w - theta)


@register("client", "pfedme")
@dataclass(frozen=True, kw_only=True)
class PFedMe(Personal):
    """A personal model near the shared one, found by inner steps on each batch.

    Args:
        lam: weight of the squared distance to the shared model, positive.
        inner_steps: steps on the personal model for each batch, at least 1.
        inner_lr: learning rate of the inner steps, positive; `inner_lr` times `lam` must be below 2.
        lr: learning rate of the shared model, a number or a schedule.
    """

    lam: float = 15.0
    inner_steps: int = 5
    inner_lr: float = 0.01
    lr: float | LRSchedule = 0.005

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(lam=self.lam, inner_steps=self.inner_steps, inner_lr=self.inner_lr)
        if self.inner_lr * self.lam >= 2:
            raise ValueError(
                f"inner_lr: {self.inner_lr} times lam {self.lam} is 2 or more, which diverges; use a smaller one"
            )

    def step_memory(self, at: StepContext) -> Mapping[str, Tree]:
        return {"personal": at.received["model"]}

    def step(self, step: Step) -> None:
        theta = step.memory["personal"]
        for _ in range(self.inner_steps):
            gradient = step.gradient(theta).add_((theta - step.params).mul_(self.lam))
            step.descend(gradient, "personal", self.inner_lr)
        step.params.copy_(envelope_step(step.params, theta, step.rate, self.lam))

    def finish(self, end: TrainingResult) -> tuple[Mapping[str, Tree], Tree]:
        return {"model": end.delta}, end.memory["personal"]

    def gradients_per_step(self) -> int:
        return self.inner_steps

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        return ctx.net(ctx.received["model"] if ctx.state is None else ctx.state)
