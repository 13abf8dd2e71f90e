"""FedROD: a shared model trained with a balanced loss, and a personal head on its features.    per mini-batch

    (u, v) <- steps on  softmax cross-entropy of  g(x) + balance log n_y
    p_i <- steps on  softmax cross-entropy of  g(x) + p_i(h(x)),  g and h fixed

g = v(h(x)) are the shared outputs, h the inputs of the last linear layer, n_y the number of the client's training
samples of class y.  p_i is the part `personal` of the model.  Sends the change of (u, v), keeps p_i, predicts with
g + p_i; the server and a client without p_i predict with g. Virtual time counts one gradient a step: p_i's gradient
needs no pass through the model. Chen, Chao 2022, arXiv:2107.00778.
Differs from the paper: p_i is linear and starts at zero; no hypernetwork.
Equals FedAvg: balance=0 trains the shared model as FedAvg does, equal bits in the loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fl import (
    Batch,
    ClientContext,
    Descent,
    Extended,
    LocalSteps,
    Params,
    Reply,
    StepContext,
    Task,
    TrainingInputs,
    Tree,
    Update,
    View,
    checks,
    class_counts,
    head_layer,
    join,
    layer_outputs,
    register,
)

from .personal import Personal

WEIGHT, BIAS = "personal.weight", "personal.bias"  # the client's own tensors


class WithPersonalHead(Extended):
    """A model with a second head, which starts at zero.

    Args:
        original: the model.
        head: name of its last linear layer.
    """

    def __init__(self, original: nn.Module, head: str):
        layer = original.get_submodule(head)
        assert isinstance(layer, nn.Linear)
        personal = nn.utils.skip_init(nn.Linear, layer.in_features, layer.out_features)
        super().__init__(original, "personal", personal)
        self.shared_head = head
        for parameter in personal.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, parts: bool = False) -> Any:
        """Return g(x) + p(h(x)), or g(x) and h(x) as `parts`."""
        shared, features = self.with_inputs(self.shared_head, x)
        return (shared, features) if parts else shared + self.added(features)


def balanced(outputs: Tensor, counts: Tensor, balance: float) -> Tensor:
    """Return outputs (B, K) + balance log counts (K,); its softmax cross-entropy is the balanced softmax loss.

    balance is positive. Classes that the client lacks are left out.
    """
    return outputs + balance * counts.log()


def head_gradient(head: Params, features: Tensor, shared: Tensor, y: Tensor) -> Params:
    """Return the gradient of the mean cross-entropy of shared (B, K) + features (B, d) weight^T + bias.

    It is the gradient in (weight (K, d), bias (K,)).
    """
    error = (shared + F.linear(features, head[WEIGHT], head[BIAS])).softmax(-1)
    error[torch.arange(len(y)), y] -= 1.0
    error = error / len(y)
    return Params.of({WEIGHT: error.T @ features, BIAS: error.sum(0)})


@register("client", "fedrod")
@dataclass(frozen=True, kw_only=True)
class FedROD(Personal):
    """A shared model trained with the balanced loss, and a personal linear head on its features.

    Args:
        balance: weight of the logarithms of the class counts in the shared loss, at least 0. 0 is the plain loss.
    """

    balance: float = 1.0

    classes_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.not_negative(balance=self.balance, hint="0 is the plain loss")
        if self.balance == 0:
            logging.getLogger(__name__).warning("client: fedrod with balance=0 trains the shared model as FedAvg does")

    def extend(self, module: nn.Module, sample_shape: tuple[int, ...], outputs: int) -> nn.Module:
        return WithPersonalHead(module, head_layer(module, [name for name, _ in module.named_parameters()]))

    def facts(self, view: View, task: Task, outputs: int) -> Tree:
        return class_counts(view, outputs).float()

    def first_state(self, inputs: TrainingInputs) -> Tree:
        return inputs.initial.trained.select([WEIGHT, BIAS])

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        steps, received = LocalSteps(self, ctx), ctx.received["model"]
        w, head = received.clone(), steps.at.state.clone()
        shared, personal = Descent(steps.phase, w), Descent(steps.phase, head)
        for batch in steps:
            with layer_outputs(ctx.module, "") as recorded:
                gradient = steps.gradient(w)
            outputs, features = (part.detach() for part in recorded[-1][1])
            personal.step(head_gradient(head, features, outputs, batch["y"]))
            shared.step(gradient)
        return Reply(Update({"model": w - received}, len(ctx.train), {"loss": steps.loss}), head)

    def objective(self, net: Callable[..., Any], batch: Batch, at: StepContext, task: Task) -> Tensor:
        outputs, _ = net(batch["x"], parts=True)
        return task.loss(balanced(outputs, at.facts, self.balance) if self.balance else outputs, batch)

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        received = ctx.received["model"]
        return ctx.net(received if ctx.state is None else join(received, ctx.state))
