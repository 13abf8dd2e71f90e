"""FedLwF's client: local training on the labels and on what the teacher says of the same samples.

    loss_s = L(z_s, y_s) + weight * T^2 * KL(softmax(t_s / T) || softmax(z_s / T)),    t_s the teacher's outputs, z_s the model's

Li, Hoiem 2016, arXiv:1606.09282; T^2 keeps the size of gradients as in Hinton, Vinyals, Dean 2015, arXiv:1503.02531. The teacher is
asked once per sample, in evaluation mode, before training. In the first task there is none.  Neutral: weight=0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fl.data.views import View
from fl.method.local_training import LocalTraining
from fl.registry import register

BLOCK = 256  # samples per forward pass of the teacher


def distillation(outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """(B,): T^2 KL(softmax(teacher / T) || softmax(outputs / T)), both (B, K)."""
    student = F.log_softmax(outputs / temperature, -1)
    target = F.log_softmax(teacher / temperature, -1)
    return temperature**2 * (target.exp() * (target - student)).sum(-1)


@register("client", "fedlwf")
@dataclass(frozen=True, kw_only=True)
class FedLwF(LocalTraining):
    receives: ClassVar[tuple[str, ...]] = ("model", "weight", "temperature")

    def work(self, name, ctx, carry):
        if "teacher" in ctx.received and ctx.config["weight"] and len(ctx.train):
            batch, net = ctx.train.take(), ctx.net(ctx.received["teacher"])
            with torch.no_grad():
                outputs = torch.cat([net(x) for x in batch["x"].split(BLOCK)])
            ctx = replace(ctx, train=View({**batch, "teacher": outputs}, np.arange(len(ctx.train))))
        return super().work(name, ctx, carry)

    def objective(self, net, batch, at, task):
        outputs = net(batch["x"])
        loss = task.loss(outputs, batch)
        if "teacher" not in batch:
            return loss
        # a task that asks of a slice of the outputs: the slices before it are the old tasks'
        old = slice(getattr(task, "low", 0) or None)
        distilled = distillation(outputs[..., old], batch["teacher"][..., old], at.config["temperature"])
        return loss + at.config["weight"] * distilled
