"""The diagonal of the empirical Fisher information of training data."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fl.data.views import View
from fl.method.context import ClientContext
from fl.tasks.task import Task
from fl.tensors.params import Params, zeros_like

ELEMENTS = 1 << 22  # elements of the gradients that are held at once


def fisher(ctx: ClientContext, params: Params) -> Params:
    """Return F = 1/n sum_s (d loss(w; x_s, y_s) / dw)^2 at w = `params`; zeros without data.

    The loss is the task's, for each sample of `ctx.train` with its own label (empirical Fisher information). The model
    is in evaluation mode. Kirkpatrick et al. 2017, arXiv:1612.00796.
    """
    return mean_squares(ctx.net(params), params, ctx.train, ctx.task)


def mean_squares(net: nn.Module, params: Params, view: View, task: Task) -> Params:
    """Return the mean of the squared gradients of single samples at `params`.

    Args:
        net: the model; tensors missing from `params` are its own.
        params: the parameters to differentiate in.
        view: the samples.
        task: its loss.
    """
    total = zeros_like(params)

    def loss(tensors: Mapping[str, Tensor], sample: Mapping[str, Tensor]) -> Tensor:
        batch = {name: value[None] for name, value in sample.items()}
        return task.loss(torch.func.functional_call(net, dict(tensors), (batch["x"],)), batch).sum()

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))
    block, tensors = max(1, ELEMENTS // params.numel), {name: params[name] for name in params}
    for a in range(0, len(view), block):
        for name, grads in gradients(tensors, view.take(slice(a, a + block))).items():
            total[name].add_(grads.square().sum(0))
    return total.mul_(1 / max(len(view), 1))
