"""FedLwF's client: local training on the labels and on the teacher's outputs for the same samples.

    loss_s = L(z_s, y_s) + weight * T^2 * KL(softmax(t_s / T) || softmax(z_s / T))
    t_s: outputs of the teacher,  z_s: outputs of the model

Li, Hoiem 2016, arXiv:1606.09282; T^2 keeps the size of gradients as in Hinton, Vinyals, Dean 2015, arXiv:1503.02531.
The teacher's outputs are computed in evaluation mode: once per sample before training, or, if training batches are
augmented, for each batch as the model sees it.  In the first task there is no teacher.
Equals FedAvg: weight=0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fl import Batch, ClientContext, LocalTraining, StepContext, Task, View, register

from .measure import check_graphs

BLOCK = 256  # samples per forward pass of the teacher


def distillation(outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(softmax(teacher / T) || softmax(outputs / T)), (B,); both are (B, K)."""
    student = F.log_softmax(outputs / temperature, -1)
    target = F.log_softmax(teacher / temperature, -1)
    return temperature**2 * (target.exp() * (target - student)).sum(-1)


@register("client", "fedlwf")
@dataclass(frozen=True, kw_only=True)
class FedLwF(LocalTraining):
    """Local training with distillation; its weight and temperature come with the broadcast."""

    receives: ClassVar[tuple[str, ...]] = ("model", "weight", "temperature")

    def samples(self, ctx: ClientContext) -> View:
        if ctx.random_batches:  # the objective makes the teacher's passes
            check_graphs(ctx)
            return ctx.train
        if "teacher" not in ctx.received or not ctx.config["weight"] or not len(ctx.train):
            return ctx.train
        batch, net = ctx.train.take(), ctx.net(ctx.received["teacher"])
        with torch.no_grad():
            outputs = torch.cat([net(x) for x in torch.split(batch["x"], BLOCK)])
        return View({**batch, "teacher": outputs}, np.arange(len(ctx.train)))

    def objective(self, net: Callable[[Tensor], Tensor], batch: Batch, at: StepContext, task: Task) -> Tensor:
        outputs = net(batch["x"])
        loss = task.loss(outputs, batch)
        if "teacher" not in at.received or not at.config["weight"]:
            return loss
        if "teacher" in batch:
            targets = batch["teacher"]
        else:
            targets = at.under(at.received["teacher"], batch["x"])
        # if the task uses a slice of the outputs, the outputs before that slice belong to old tasks
        old = slice(getattr(task, "low", 0) or None)
        distilled = distillation(outputs[..., old], targets[..., old], at.config["temperature"])
        return loss + at.config["weight"] * distilled
