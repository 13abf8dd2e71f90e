"""FreeMatch's client: FixMatch with a threshold for each class that follows the model.    per unlabelled step

    p = softmax f(w_k; a(x)), without gradient
    t <- decay t + (1 - decay) mean(max p),    q <- decay q + (1 - decay) mean(p)          t = q_c = 1 / C at first
    loss = mean [max p >= t q_y / max q] * cross-entropy(f(w_k; A(x)), y),    y = argmax p

t and q are the client's state; they stay with the client.  The steps before are gradient steps on the labels
(`clients/semi_supervised.py`).
Wang et al. 2023, arXiv:2205.07246: its self-adaptive thresholds.
Differs from the paper: the fairness loss is left out; p is computed without Dropout.
Equals FedAvg: unlabelled_steps=0, weight_view=train, equal bits in the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fl import (
    Batch,
    ClientContext,
    Descent,
    LocalSteps,
    Reply,
    StepContext,
    Task,
    TrainingInputs,
    Tree,
    Update,
    View,
    checks,
    register,
)

from .measure import check_graphs
from .semi_supervised import SemiSupervised, pseudo_label_losses


def class_thresholds(sure: Tensor, share: Tensor) -> Tensor:
    """Return the thresholds of the classes, (C,), from the averages t () and q (C,).

    >>> class_thresholds(torch.tensor(0.8), torch.tensor([0.5, 0.25])).tolist()
    [0.800000011920929, 0.4000000059604645]
    """
    return sure * share / share.amax()


@register("client", "freematch")
@dataclass(frozen=True, kw_only=True)
class FreeMatch(SemiSupervised):
    """Steps on labels, then on pseudo-labels of the local model above thresholds that follow the model.

    Args:
        decay: weight of the last averages in each unlabelled step, in [0, 1). 0 takes the step's own means.
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.within("[0, 1)", decay=self.decay)

    def facts(self, view: View, task: Task, outputs: int) -> Tree:
        """Return 1 / C for each class, the averages of a new client."""
        return torch.full((outputs,), 1.0 / outputs)

    def first_state(self, inputs: TrainingInputs) -> Tree:
        return {"sure": inputs.facts[0], "share": inputs.facts}

    def averaged(self, state: dict[str, Tensor], p: Tensor) -> dict[str, Tensor]:
        """Return the averages {"sure": t (), "share": q (C,)} after a step with probabilities p (B, C)."""
        means = {"sure": p.amax(-1).mean(), "share": p.mean(0)}
        return {name: self.decay * average + (1 - self.decay) * means[name] for name, average in state.items()}

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        check_graphs(ctx)
        inputs = self.inputs(ctx)
        start, state, done = self.start(inputs), inputs.state, list[LocalSteps]()
        w = start.clone()
        for index, phase in enumerate(self.phases(ctx.round, ctx.rounds)):
            theta = w.select(phase.trains)
            first, facts = theta.clone(), ctx.module_facts
            at = StepContext(**vars(inputs), phase=phase, start=first, module_facts=facts)
            limit = None if ctx.limit is None else ctx.limit - sum(steps.taken for steps in done)
            steps, descent = LocalSteps(self, ctx, phase=phase, index=index, at=at, limit=limit), Descent(phase, theta)
            for batch in steps:
                if phase.view == "unlabelled":
                    p = at.under(w, batch["x"]).softmax(-1)
                    state = self.averaged(state, p)
                    least = class_thresholds(state["sure"], state["share"])
                    steps.batch = {**batch, "p": p, "least": least.expand_as(p)}
                descent.step(steps.gradient(theta, w))
                w.copy_(theta, names=theta)
            done.append(steps)
        metrics = {"loss": sum(float(s.loss_sum) for s in done) / max(sum(s.samples for s in done), 1)}
        return Reply(Update({"model": w - start}, self.weight(ctx), metrics), state)

    def unlabelled_loss(self, net: Callable[..., Any], batch: Batch, at: StepContext, task: Task) -> Tensor:
        return pseudo_label_losses(task, net(batch["strong"]), batch["p"], batch["least"][0])
