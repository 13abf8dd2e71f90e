"""FedROD: a shared model trained for all classes alike, and on its features a head of the client's own.    per mini-batch

    (u, v) <- steps on  softmax cross-entropy of  g(x) + balance log n_y;    p_i <- steps on that of  g(x) + p_i(h(x)),  g and h fixed

g = v(h(x)) are the shared outputs, h the inputs of the last linear layer, n_y how often the client's training data have class y. Sends the change of
(u, v), keeps p_i, predicts with g + p_i; the server and a client without p_i with g.
Chen, Chao 2022, arXiv:2107.00778. Differs from the paper: p_i is linear and begins at zero; no hypernetwork.
balance=0 trains the shared model as FedAvg does, to the bit in a loop. Virtual time counts one gradient a step: p_i's
needs no pass through the model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from clients.personal import Personal
from fl.data.views import Batch
from fl.execution.training.steps import Descent, LocalSteps
from fl.method.context import ClientContext, Reply
from fl.method.local_training import StepContext
from fl.method.messages import Update
from fl.models.layers import head_names
from fl.registry import register
from fl.tasks.task import Task
from fl.tensors.params import Params
from fl.tensors.trees import Tree


def balanced(outputs: Tensor, counts: Tensor, balance: float) -> Tensor:
    """outputs (B, K) + balance log counts (K,), whose softmax cross-entropy is the balanced softmax loss; balance > 0, and
    classes that the client lacks are left out."""
    return outputs + balance * counts.log()


def head_gradient(head: Params, features: Tensor, shared: Tensor, y: Tensor) -> Params:
    """Gradient in (weight (K, d), bias (K,)) of the mean cross-entropy of shared (B, K) + features (B, d) weight^T + bias."""
    error = (shared + F.linear(features, head["weight"], head["bias"])).softmax(-1)
    error[torch.arange(len(y)), y] -= 1.0
    error = error / len(y)
    return Params.of({"weight": error.T @ features, "bias": error.sum(0)})


@register("client", "fedrod")
@dataclass(frozen=True, kw_only=True)
class FedROD(Personal):
    """A shared model trained with the balanced loss, and a linear head of the client's own on its features.

    Args:
        balance: weight of the logarithms of the class counts in the shared loss, at least 0. 0 is the plain loss.
    """

    balance: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.balance < 0:
            raise ValueError(f"balance: {self.balance} is negative; 0 is the plain loss")
        if self.balance == 0:
            logging.getLogger(__name__).warning("client: fedrod with balance=0 trains the shared model as FedAvg does")

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        if ctx.task.kernel != "cross_entropy":
            raise ValueError(f"task: fedrod is for classification, this is {type(ctx.task).__name__}")
        received, layer = ctx.received["model"], self.layer(ctx)
        counts = torch.bincount(ctx.train.take()["y"], minlength=layer.out_features).float()
        steps = LocalSteps(self, replace(ctx, config={**ctx.config, "counts": counts}))
        w, head = received.clone(), self.first_head(layer) if ctx.state is None else ctx.state.clone()
        shared, own = Descent(steps.phase, w), Descent(steps.phase, head)
        with watched(ctx.module, layer) as seen:
            for batch in steps:
                gradient = steps.gradient(w)
                own.step(head_gradient(head, seen["features"], seen["outputs"], batch["y"]))
                shared.step(gradient)
        return Reply(Update({"model": w - received}, len(ctx.train), {"loss": steps.loss}), head)

    def objective(self, net: Callable[[Tensor], Tensor], batch: Batch, at: StepContext, task: Task) -> Tensor:
        outputs = net(batch["x"])
        return task.loss(balanced(outputs, at.config["counts"], self.balance) if self.balance else outputs, batch)

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        net, layer = ctx.net(ctx.received["model"]), self.layer(ctx)
        if ctx.state is None:
            return net

        def both(x: Tensor) -> Tensor:
            with watched(ctx.module, layer) as seen:
                shared = net(x)
            return shared + F.linear(seen["features"], ctx.state["weight"], ctx.state["bias"])

        return both

    @staticmethod
    def layer(ctx: ClientContext) -> torch.nn.Linear:
        """The shared head in the module."""
        name = head_names(ctx.module, ctx.received["model"])[0].rpartition(".")[0]
        return cast(torch.nn.Linear, ctx.module.get_submodule(name))

    @staticmethod
    def first_head(layer: torch.nn.Linear) -> Params:
        return Params.of({"weight": torch.zeros(layer.weight.shape), "bias": torch.zeros(layer.out_features)})


@contextmanager
def watched(module: torch.nn.Module, layer: torch.nn.Module) -> Iterator[dict[str, Tensor]]:
    """Of the last forward pass, without gradient: the inputs of `layer` ("features"), the module's "outputs"."""
    seen: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, x: seen.update(features=x[0].detach())),
        module.register_forward_hook(lambda _, __, outputs: seen.update(outputs=outputs.detach())),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
