"""FedProto: local models whose class means of representations stay near the global ones.

    loss + lam * sum_{k in batch} |c_k - C_k|^2 / D     c_k: mean representation of the batch's samples of class k, (D,)
    send after training, for each class of the training data:  c_k over all its samples, and their number

Tan, Long, Liu, Zhou, Lu, Jiang, Zhang 2022, arXiv:2105.00243, Algorithm 1.  C_k is the received prototype; classes
without one are left out.  The squared distance is a mean over the D coordinates, as in the authors' program (which
takes it for each sample, not for the class mean).
predict: `prototypes` scores class k by -|z - C_k|^2, and a class without C_k 30 below the farthest; `head` (and any
client before there are prototypes) uses the model's outputs. Loop only: representations are recorded inside the
module.
Equals local training: lam=0 with `head`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from fl import Batch, ClientContext, Reply, StepContext, Table, Task, Tree, checks, class_means, features_of, register

from .local import Local
from .measure import representations


def pull(z: Tensor, y: Tensor, prototypes: Table) -> Tensor:
    """Return the sum of |class mean - prototype|^2 / D over the classes of y that have a prototype, a tensor ()."""
    means = class_means(z, y)
    known = torch.isin(means.keys, prototypes.keys)
    rows = torch.searchsorted(prototypes.keys, means.keys[known])
    return (means.values[known] - prototypes.values[rows]).square().mean(1).sum()


def nearness(z: Tensor, prototypes: Table, classes: int) -> Tensor:
    """Return scores (B, classes): minus the squared distance to each prototype.

    A class without a prototype scores 30 below the lowest.
    """
    found = -(z[:, None] - prototypes.values).square().sum(-1)
    scores = (found.min(1, keepdim=True).values - 30).repeat(1, classes)
    scores[:, prototypes.keys] = found
    return scores


@register("client", "fedproto")
@dataclass(frozen=True, kw_only=True)
class FedProto(Local):
    """Local training with class means near the received prototypes.

    Args:
        lam: weight of the distance to the prototypes, at least 0. 0 is local training.
        features: name of the layer whose outputs are the representations. Default: the inputs of the last layer.
        predict: `prototypes` predicts by the nearest prototype, `head` by the model's outputs.
    """

    lam: float = 1.0
    features: str | None = None
    predict: Literal["prototypes", "head"] = "prototypes"

    sends: ClassVar[tuple[str, ...]] = ("prototypes",)
    receives: ClassVar[tuple[str, ...]] = ("prototypes",)
    classes_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.not_negative(lam=self.lam, hint="0 is local training")
        checks.one_of(("prototypes", "head"), predict=self.predict)
        if self.lam == 0:
            logging.getLogger(__name__).warning("lam=0: this trains as local does")

    def check_models(self, modules: Mapping[str, nn.Module], x: Tensor) -> None:
        widths = {}
        for name, module in modules.items():
            with features_of(module, self.features) as recorded:
                module(x)
            widths[name] = recorded[0][1].flatten(1).shape[1]
        if len(set(widths.values())) > 1:
            found = ", ".join(f"{name} {width}" for name, width in widths.items())
            raise ValueError(
                f"features: prototypes of all clients need one width, and the models' representations have {found}. "
                "Name a layer that has the same width in all models, or choose models whose last layer has inputs of "
                "one width"
            )

    def work(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        y = ctx.train.arrays["y"]
        if y.is_floating_point() or y.ndim != 1:
            raise ValueError(
                f"prototypes are means by class; y is {tuple(y.shape)} of {y.dtype}. Use a classification task"
            )
        reply = super().work(name, ctx, carry)
        means = class_means(representations(ctx, reply.state, self.features), ctx.train.take()["y"])
        return Reply(replace(reply.update, groups={"prototypes": means}), reply.state)

    def objective(self, net: Callable[[Tensor], Tensor], batch: Batch, at: StepContext, task: Task) -> Tensor:
        prototypes = at.received["prototypes"]
        if not self.lam or not len(prototypes.keys):
            return task.loss(net(batch["x"]), batch)
        assert isinstance(net, nn.Module)  # trained in the loop
        with features_of(net, self.features) as recorded:
            losses = task.loss(net(batch["x"]), batch)
        return losses + self.lam * pull(recorded[0][1].flatten(1), batch["y"], prototypes)

    def predictor(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        net, prototypes = super().predictor(ctx), ctx.received["prototypes"]
        if self.predict == "head" or not len(prototypes.keys):
            return net

        def nearest(x: Tensor) -> Tensor:
            with features_of(ctx.module, self.features) as recorded:
                outputs = net(x)
            return nearness(recorded[0][1].flatten(1), prototypes, outputs.shape[-1])

        return nearest
