"""q-FedAvg's clients: local SGD; the change is weighted by the loss of the received model.

    send F^q delta  and  h = F^q + q F^(q-1) |delta|^2 / lr           F: mean training loss at the received model

Li, Sanjabi, Beirami, Smith 2020, arXiv:1905.10497, Algorithm 2 (there times L = 1 / lr, see
`strategies/q_fedavg.py`); delta = w - received.  As in the authors' program 1e-10 is added to F.  A client without
data sends zeros.  The paper's q are 0.001 to 5; a larger q makes shorter steps.
Equals FedAvg: q=0 is FedAvg with uniform weights.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fl import ClientContext, LocalTraining, Reply, TrainingInputs, TrainingResult, Tree, checks, dot, register

from .measure import mean_loss


def weight(loss: Tensor, q: float) -> Tensor:
    """Return F^q."""
    return (loss + 1e-10) ** q


def curvature(loss: Tensor, q: float, square: Tensor, lr: float) -> Tensor:
    """Return h / L for a client whose change has the squared norm `square`."""
    return weight(loss, q) + q * weight(loss, q - 1) * square / lr


@register("client", "q_fedavg")
@dataclass(frozen=True, kw_only=True)
class QFedAvg(LocalTraining):
    """Local SGD weighted by the client's loss.

    Args:
        q: exponent of the loss, at least 0. 0 gives all clients equal weights.
    """

    q: float = 0.1

    sends: ClassVar[tuple[str, ...]] = ("model", "h")

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.not_negative(q=self.q, hint="0 gives all clients equal weights")
        if self.lr == 0:
            raise ValueError("lr: 0 has no 1 / lr to bound the curvature by")
        if self.rates:
            raise ValueError("rates: the curvature is bounded by 1 / lr of one learning rate; leave `rates` out")
        if self.q == 0:
            logging.getLogger(__name__).warning("q=0: this is fedavg with weights=uniform")

    def prepare(self, ctx: ClientContext, inputs: TrainingInputs) -> Tree:
        """Return F, the mean training loss at the received model."""
        return torch.tensor(mean_loss(ctx, ctx.received["model"]), dtype=torch.float64)

    def finish(self, end: TrainingResult) -> tuple[Mapping[str, Tree], Tree]:
        loss, delta, lr = end.prepared, end.delta, self.phases(end.round, end.rounds)[0].lr
        h = curvature(loss, self.q, dot(delta, delta), lr)
        h = torch.where(torch.as_tensor(end.num_examples) > 0, h, 0.0)
        return {"model": weight(loss, self.q) * delta, "h": h.float()}, None

    def metrics(self, end: TrainingResult) -> Mapping[str, float | Tensor]:
        return {"received_loss": end.prepared}

    def context_after_training(self, ctx: ClientContext, reply: Reply) -> ClientContext:
        factor = weight(torch.as_tensor(reply.update.metrics["received_loss"]), self.q)
        delta = reply.update.groups["model"] / factor
        return super().context_after_training(
            ctx, replace(reply, update=replace(reply.update, groups={"model": delta}))
        )
