"""IFCA: as many models as there are kinds of clients; each client trains the one that fits it best.

    model_j <- model_j + lr * mean_{i: j_i = j} delta_i,     j_i = argmin_j loss_i(model_j)                 j = 0 .. clusters - 1

Ghosh, Chung, Yin, Ramchandran 2020, arXiv:2006.04088, Algorithm 1, model averaging.  The mean is uniform as in the paper; a
model that nobody chose stays as it is.  All models go down to every client, one update comes up.
Model 0 begins as the run's first model, the others as the same values in another order, tensor by tensor: as good as new
draws for weights drawn alike; a warm start survives in model 0 alone.
The server, without data to choose by, predicts with model 0: what counts are the clients' own figures (clients/*, val/*).
Neutral: clusters=1 is FedAvg of uniform weights, to 1e-6.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from fl.method.reduction import ClassMean
from fl.method.strategy import FedAvgEquivalent, Strategy
from fl.registry import register
from fl.tensors.params import Params


@dataclass(frozen=True)
class State:
    models: tuple[Params, ...]


@dataclass(frozen=True)
class ClusterMean(ClassMean):
    """The mean update of each cluster, and the weight of who is in it."""

    weights: Literal["examples", "uniform"] = "uniform"

    def lift(self, value, meta):
        counts = (value.counts > 0).long() if self.weights == "uniform" else value.counts
        return super().lift(replace(value, counts=counts), meta)


def reordered(model: Params, generator: torch.Generator) -> Params:
    """The model with the values of each tensor in another order."""
    other = model.clone()
    for name, tensor in model.items():
        order = torch.randperm(tensor.numel(), generator=generator)
        other[name].copy_(tensor.reshape(-1)[order].view_as(tensor))
    return other


@register("strategy", "ifca")
@dataclass(frozen=True, kw_only=True)
class IFCA(Strategy):
    clusters: int = 2
    lr: float = 1.0
    weights: Literal["examples", "uniform"] = "uniform"

    client: ClassVar[str] = "ifca"
    fedavg_equivalent: ClassVar[FedAvgEquivalent] = FedAvgEquivalent(
        strategy={"clusters": 1, "lr": 1.0}, fedavg={"weights": "uniform"}, bits=False
    )

    def __post_init__(self):
        if self.clusters < 1:
            raise ValueError(f"clusters: {self.clusters} is not at least 1")
        if self.clusters == 1:
            logging.getLogger(__name__).warning("clusters=1: this is fedavg with weights=%s", self.weights)

    def init(self, model, ctx):
        others = range(1, self.clusters)
        return State((model, *(reordered(model, ctx.generator(f"cluster/{j}")) for j in others)))

    def model(self, state):
        return state.models[0]

    def broadcast(self, state, ctx):
        return {"models": state.models}

    def reduction(self, state, ctx):
        return {"clusters": ClusterMean(self.weights)}

    def step(self, state, reduced, ctx):
        models, found, layout = list(state.models), reduced["clusters"], state.models[0].layout
        for j, mean in zip(found.keys.tolist(), found.values):
            models[j] = models[j] + self.lr * Params.expand(layout, mean.to(layout.dtypes[0]))
        weights = dict(zip(found.keys.tolist(), found.counts.tolist()))
        return State(tuple(models)), {f"cluster{j}": weights.get(j, 0.0) for j in range(self.clusters)}
