"""FedROD: a shared model trained for all classes alike, and on its features a head of the client's own.    per mini-batch

    (u, v) <- steps on  softmax cross-entropy of  g(x) + balance log n_y;    p_i <- steps on that of  g(x) + p_i(h(x)),  g and h fixed

g = v(h(x)) are the shared outputs, h the inputs of the last linear layer, n_y how often the client's training data have class y. Sends the change of
(u, v), keeps p_i, predicts with g + p_i; the server and a client without p_i with g.
Chen, Chao 2022, arXiv:2107.00778. Differs from the paper: p_i is linear and begins at zero; no hypernetwork.
balance=0 trains the shared model as FedAvg does.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clients.personal import Personal, Steps
from fl.method.client import Reply
from fl.method.messages import Update
from fl.models.nn import head_names
from fl.registry import register
from fl.tensors.params import Params


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
    balance: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if self.balance < 0:
            raise ValueError(f"balance: {self.balance} is negative; 0 is the plain loss")
        if self.balance == 0:
            logging.getLogger(__name__).warning("client: fedrod with balance=0 trains the shared model as FedAvg does")

    def work(self, name, ctx, carry):
        if ctx.task.kernel != "cross_entropy":
            raise ValueError(f"task: fedrod is for classification, this is {type(ctx.task).__name__}")
        received, layer = ctx.received["model"], self.layer(ctx)
        w, steps = received.clone(), Steps(self, ctx)
        own = self.first_head(layer) if ctx.state is None else ctx.state.clone()
        shared_memory, own_memory = steps.memory(w), steps.memory(own)
        counts = torch.bincount(ctx.train.take()["y"], minlength=layer.out_features).float()
        seen = {}

        def loss(outputs: Tensor, batch) -> Tensor:
            seen["shared"] = outputs.detach()
            return ctx.task.loss(balanced(outputs, counts, self.balance) if self.balance else outputs, batch)

        with watched(layer, seen):
            for batch in steps.batches():
                gradient, losses = steps.gradient(w, batch, loss)
                steps.note(losses)
                own_memory.descend(own, head_gradient(own, seen["features"], seen["shared"], batch["y"]))
                shared_memory.descend(w, gradient)
        return Reply(Update({"model": w - received}, len(ctx.train), {"loss": steps.loss}), own)

    def predictor(self, ctx):
        net, layer = ctx.net(ctx.received["model"]), self.layer(ctx)
        if ctx.state is None:
            return net

        def both(x):
            seen = {}
            with watched(layer, seen):
                shared = net(x)
            return shared + F.linear(seen["features"], ctx.state["weight"], ctx.state["bias"])

        return both

    @staticmethod
    def layer(ctx) -> torch.nn.Linear:
        """The shared head in the module."""
        return ctx.module.get_submodule(head_names(ctx.module, ctx.received["model"])[0].rpartition(".")[0])

    @staticmethod
    def first_head(layer: torch.nn.Linear) -> Params:
        return Params.of({"weight": torch.zeros(layer.weight.shape), "bias": torch.zeros(layer.out_features)})


class watched:
    """While it lasts, what goes into `layer` is put into `seen` as "features"."""

    def __init__(self, layer: torch.nn.Module, seen: dict[str, Tensor]):
        self.layer, self.seen = layer, seen

    def __enter__(self):
        self.hook = self.layer.register_forward_pre_hook(lambda _, x: self.seen.update(features=x[0].detach()))

    def __exit__(self, *_):
        self.hook.remove()
