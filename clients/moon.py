"""MOON: representations drawn to those of the received model, away from those of one's own last one.

    loss + mu * contrast,    contrast = -log( e^(s(z, z_received) / T) / (e^(s(z, z_received) / T) + e^(s(z, z_previous) / T)) )

Li, He, Song 2021, arXiv:2103.16257, Algorithm 1.  s is the cosine, z what the layer `features` gives (default: what goes
into the last layer).  A client keeps the model it arrived at and contrasts with it next time; the first time that is the
received model, so that the contrast pulls nowhere (in the authors' program: the client's first weights).  z_received and
z_previous are computed once a round, without dropout.
Differs from the paper: no projection head of its own; name a layer of the model that is one.
Loop only: representations are heard inside the module.  Neutral: mu=0.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clients.measure import representations, tapped
from fl.data.views import View
from fl.method.local_training import LocalTraining
from fl.registry import register


def contrast(z: Tensor, received: Tensor, previous: Tensor, temperature: float) -> Tensor:
    """(B, D) three times -> (B,): the contrastive loss of each sample."""
    cosines = [F.cosine_similarity(z, other) for other in (received, previous)]
    return -F.log_softmax(torch.stack(cosines, 1) / temperature, 1)[:, 0]


@register("client", "moon")
@dataclass(frozen=True, kw_only=True)
class Moon(LocalTraining):
    mu: float = 1.0
    temperature: float = 0.5
    features: str | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.mu < 0:
            raise ValueError(f"mu: {self.mu} is negative; 0 is plain local training")
        if self.temperature <= 0:
            raise ValueError(f"temperature: {self.temperature} is not positive")
        if self.mu == 0:
            logging.getLogger(__name__).warning("mu=0: this is fedavg")

    def first_state(self, given):
        return given.received["model"]

    def work(self, name, ctx, carry):
        if not self.mu or not len(ctx.train):
            return super().work(name, ctx, carry)
        models = {"received": ctx.received["model"], "previous": self.inputs(ctx).state}
        heard = {whose: representations(ctx, model, self.features) for whose, model in models.items()}
        train = View({**ctx.train.take(), **heard}, np.arange(len(ctx.train)))
        return super().work(name, replace(ctx, train=train), carry)

    def objective(self, net, batch, at, task):
        if not self.mu:
            return task.loss(net(batch["x"]), batch)
        with tapped(net, self.features) as heard:
            outputs = net(batch["x"])
        return task.loss(outputs, batch) + self.mu * contrast(
            heard[0], batch["received"], batch["previous"], self.temperature
        )

    def finish(self, end):
        return {"model": end.delta}, end.params
