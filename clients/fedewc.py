"""FedEWC's client: local training with a spring at every weight; the diagonal Fisher information when a task ends.

    work train:   g <- g + lam (F w - b),  F and b = sum_t F_t w*_t from the server (nothing in the first task)
    work fisher:  F_i = 1/n_i sum_s (d loss(w; x_s, y_s) / dw)^2,  per sample, at the received model, in evaluation mode

Kirkpatrick et al. 2017, arXiv:1612.00796; the labels are the samples' own (empirical Fisher).
Equals FedAvg: lam=0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fl import ClientContext, LocalTraining, Params, Penalty, Reply, StepContext, Tree, Update, register, zeros_like

ELEMENTS = 1 << 22  # elements of the gradients that are held at once


def springs(fisher: Params, pull: Params, lam: float) -> Penalty:
    """Return the penalty lam/2 sum_t F_t (w - w*_t)^2, with the gradient lam (F w - b).

    Args:
        fisher: F = sum_t F_t, a weight for each parameter.
        pull: b = sum_t F_t w*_t.
        lam: strength of all springs.
    """
    return Penalty(lam * fisher, slope=-lam * pull)


def fisher(ctx: ClientContext, model: Params) -> Params:
    """Return the mean of squared per-sample gradients over the client's training data; zeros without data."""
    net, total = ctx.net(model), zeros_like(model)
    assert isinstance(net, nn.Module)

    def loss(tensors: Mapping[str, Tensor], sample: Mapping[str, Tensor]) -> Tensor:
        batch = {name: value[None] for name, value in sample.items()}
        return ctx.task.loss(torch.func.functional_call(net, dict(tensors), (batch["x"],)), batch).sum()

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
    block, tensors = max(1, ELEMENTS // model.numel), {name: model[name] for name in model}
    for a in range(0, len(ctx.train), block):
        for name, grads in gradients(tensors, ctx.train.take(slice(a, a + block))).items():
            total[name].add_(grads.square().sum(0))
    return total.mul_(1 / max(len(ctx.train), 1))


@register("client", "fedewc")
@dataclass(frozen=True, kw_only=True)
class FedEWC(LocalTraining):
    """Local training with elastic weight consolidation; its weight comes with the broadcast."""

    sends: ClassVar[tuple[str, ...]] = ("model", "fisher")
    receives: ClassVar[tuple[str, ...]] = ("model", "lam")

    def penalty(self, at: StepContext) -> Penalty | None:
        past, trains, lam = at.received.get("past"), at.phase.trains, at.config["lam"]
        if past is None or not lam:
            return None
        return springs(past["fisher"].select(trains), past["pull"].select(trains), lam)

    def workload(
        self, sizes: np.ndarray, round_: int, rounds: int, name: str = "train"
    ) -> tuple[np.ndarray, np.ndarray]:
        if name == "fisher":  # one gradient for each sample, and no step
            return np.zeros_like(sizes), sizes
        return super().workload(sizes, round_, rounds, name)

    def extra_samples(self, sizes: np.ndarray, round_: int, rounds: int, name: str = "train") -> np.ndarray:
        return sizes if name == "fisher" else np.zeros_like(sizes)

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        if name == "fisher":
            return Reply(Update({"fisher": fisher(ctx, ctx.received["model"])}, len(ctx.train)))
        return super().work(name, ctx, carry)
