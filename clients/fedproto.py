"""FedProto: local models whose class means of representations are held near everybody's.

    loss + lam * sum_{k in batch} |c_k - C_k|^2 / D          c_k: mean representation of the batch's samples of class k, (D,)
    send after training, for each class of the training data:  c_k over all samples of it, and their number

Tan, Long, Liu, Zhou, Lu, Jiang, Zhang 2022, arXiv:2105.00243, Algorithm 1.  C_k is what was received; classes without one
are left out.  The squared distance is a mean over the D coordinates, as in the authors' program (which takes it of each sample,
not of the class mean).  The representation is what the layer `features` gives (default: what goes into the last layer).
predict: `prototypes` answers with the nearest C_k, scores -|z - C_k|^2, a class without C_k 30 below the farthest; `head`
(and before there are prototypes) with the model's outputs.  lam=0 with `head` is local training.
Loop only: representations are heard inside the module.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from clients.local import Local
from clients.measure import representations, tapped
from fl.method.context import Reply
from fl.registry import register
from fl.tensors.sparse import Table


def class_means(z: Tensor, y: Tensor) -> Table:
    """(B, D), (B,) -> the mean of z and the number of samples of each class that occurs."""
    keys, owner, counts = torch.unique(y, return_inverse=True, return_counts=True)
    sums = z.new_zeros(len(keys), z.shape[1]).index_add(0, owner, z)
    return Table(keys, sums / counts[:, None], counts)


def pull(z: Tensor, y: Tensor, prototypes: Table) -> Tensor:
    """(): sum over the classes of y that have a prototype of |class mean - prototype|^2 / D."""
    own = class_means(z, y)
    known = torch.isin(own.keys, prototypes.keys)
    there = torch.searchsorted(prototypes.keys, own.keys[known])
    return (own.values[known] - prototypes.values[there]).square().mean(1).sum()


def nearness(z: Tensor, prototypes: Table, classes: int) -> Tensor:
    """(B, D) -> (B, classes): minus the squared distance to each prototype; where there is none, 30 below the lowest."""
    found = -(z[:, None] - prototypes.values).square().sum(-1)
    scores = (found.min(1, keepdim=True).values - 30).repeat(1, classes)
    scores[:, prototypes.keys] = found
    return scores


@register("client", "fedproto")
@dataclass(frozen=True, kw_only=True)
class FedProto(Local):
    lam: float = 1.0
    features: str | None = None
    predict: Literal["prototypes", "head"] = "prototypes"

    sends: ClassVar[tuple[str, ...]] = ("prototypes",)
    receives: ClassVar[tuple[str, ...]] = ("prototypes",)

    def __post_init__(self):
        super().__post_init__()
        if self.lam < 0:
            raise ValueError(f"lam: {self.lam} is negative; 0 leaves local training")
        if self.predict not in ("prototypes", "head"):
            raise ValueError(f"predict: {self.predict!r} is not one of ['prototypes', 'head']")
        if self.lam == 0:
            logging.getLogger(__name__).warning("lam=0: this trains as local does")

    def work(self, name, ctx, carry):
        y = ctx.train.arrays["y"]
        if y.is_floating_point() or y.ndim != 1:
            raise ValueError(
                f"prototypes are means by class; y is {tuple(y.shape)} of {y.dtype}. Use a classification task"
            )
        reply = super().work(name, ctx, carry)
        own = class_means(representations(ctx, reply.state, self.features), ctx.train.take()["y"])
        return Reply(replace(reply.update, groups={"prototypes": own}), reply.state)

    def objective(self, net, batch, at, task):
        prototypes = at.received["prototypes"]
        if not self.lam or not len(prototypes.keys):
            return task.loss(net(batch["x"]), batch)
        with tapped(net, self.features) as heard:
            losses = task.loss(net(batch["x"]), batch)
        return losses + self.lam * pull(heard[0], batch["y"], prototypes)

    def predictor(self, ctx):
        net, prototypes = super().predictor(ctx), ctx.received["prototypes"]
        if self.predict == "head" or not len(prototypes.keys):
            return net

        def nearest(x):
            with tapped(net, self.features) as heard:
                outputs = net(x)
            return nearness(heard[0], prototypes, outputs.shape[-1])

        return nearest
