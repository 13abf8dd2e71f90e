"""FedROD: a shared model trained with a balanced loss, and a personal head on its features.    per mini-batch

    (u, v) <- steps on  softmax cross-entropy of  g(x) + balance log n_y
    p_i <- steps on  softmax cross-entropy of  g(x) + p_i(h(x)),  g and h fixed

g = v(h(x)) are the shared outputs, h the inputs of the last linear layer, n_y the number of the client's training
samples of class y.  Sends the change of (u, v), keeps p_i, predicts with g + p_i; the server and a client without p_i
predict with g. Virtual time counts one gradient a step: p_i's gradient needs no pass through the model. Chen, Chao
2022, arXiv:2107.00778.
Differs from the paper: p_i is linear and starts at zero; no hypernetwork.
Equals FedAvg: balance=0 trains the shared model as FedAvg does, equal bits in the loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clients.personal import Personal
from fl import (
    Batch,
    ClientContext,
    Descent,
    LocalSteps,
    Params,
    Reply,
    StepContext,
    Task,
    Tree,
    Update,
    checks,
    head_layer,
    layer_inputs,
    layer_outputs,
    register,
)


def balanced(outputs: Tensor, counts: Tensor, balance: float) -> Tensor:
    """Return outputs (B, K) + balance log counts (K,); its softmax cross-entropy is the balanced softmax loss.

    balance is positive. Classes that the client lacks are left out.
    """
    return outputs + balance * counts.log()


def head_gradient(head: Params, features: Tensor, shared: Tensor, y: Tensor) -> Params:
    """Return the gradient of the mean cross-entropy of shared (B, K) + features (B, d) weight^T + bias.

    It is the gradient in (weight (K, d), bias (K,)).
    """
    error = (shared + F.linear(features, head["weight"], head["bias"])).softmax(-1)
    error[torch.arange(len(y)), y] -= 1.0
    error = error / len(y)
    return Params.of({"weight": error.T @ features, "bias": error.sum(0)})


@register("client", "fedrod")
@dataclass(frozen=True, kw_only=True)
class FedROD(Personal):
    """A shared model trained with the balanced loss, and a personal linear head on its features.

    Args:
        balance: weight of the logarithms of the class counts in the shared loss, at least 0. 0 is the plain loss.
    """

    balance: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.not_negative(balance=self.balance, hint="0 is the plain loss")
        if self.balance == 0:
            logging.getLogger(__name__).warning("client: fedrod with balance=0 trains the shared model as FedAvg does")

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        if ctx.task.kernel != "cross_entropy":
            raise ValueError(f"task: fedrod is for classification, this is {type(ctx.task).__name__}")
        received, shared_head = ctx.received["model"], head_layer(ctx.module, ctx.received["model"])
        layer = cast(nn.Linear, ctx.module.get_submodule(shared_head))
        counts = torch.bincount(ctx.train.take()["y"], minlength=layer.out_features).float()
        steps = LocalSteps(self, replace(ctx, config={**ctx.config, "counts": counts}))
        w, head = received.clone(), self.first_head(layer) if ctx.state is None else ctx.state.clone()
        shared, personal = Descent(steps.phase, w), Descent(steps.phase, head)
        for batch in steps:
            with layer_inputs(ctx.module, shared_head) as features, layer_outputs(ctx.module, "") as outputs:
                gradient = steps.gradient(w)
            personal.step(head_gradient(head, features[-1][1].detach(), outputs[-1][1].detach(), batch["y"]))
            shared.step(gradient)
        return Reply(Update({"model": w - received}, len(ctx.train), {"loss": steps.loss}), head)

    def objective(self, net: Callable[[Tensor], Tensor], batch: Batch, at: StepContext, task: Task) -> Tensor:
        outputs = net(batch["x"])
        return task.loss(balanced(outputs, at.config["counts"], self.balance) if self.balance else outputs, batch)

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        net, shared_head = ctx.net(ctx.received["model"]), head_layer(ctx.module, ctx.received["model"])
        if ctx.state is None:
            return net

        def both(x: Tensor) -> Tensor:
            with layer_inputs(ctx.module, shared_head) as features:
                outputs = net(x)
            return outputs + F.linear(features[-1][1].detach(), ctx.state["weight"], ctx.state["bias"])

        return both

    @staticmethod
    def first_head(layer: nn.Linear) -> Params:
        """Return a personal head of zeros."""
        return Params.of({"weight": torch.zeros(layer.weight.shape), "bias": torch.zeros(layer.out_features)})
