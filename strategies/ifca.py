"""IFCA: one model per cluster of clients; each client trains the model that fits its data best.

    model_j <- model_j + lr * mean_{i: j_i = j} delta_i,     j_i = argmin_j loss_i(model_j)        j = 0 .. clusters - 1

Ghosh, Chung, Yin, Ramchandran 2020, arXiv:2006.04088, Algorithm 1, model averaging.  The mean is uniform as in the
paper; a model that no client chose does not move.  All models go down to every client, one update comes up. Model 0
starts with the initial values, the others with the same values in another order, tensor by tensor; this equals a new
draw if the weights of a tensor are drawn from one distribution. A warm start survives only in model 0. The server has
no data to choose by and predicts with model 0; the clients' own metrics count (clients/*, val/*).
Equals FedAvg: clusters=1 is FedAvg with uniform weights, to 1e-6.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fl import (
    FedAvgEquivalent,
    Grouped,
    GroupMean,
    Meta,
    Metrics,
    Params,
    Reduction,
    ServerContext,
    Strategy,
    Table,
    WeightedMean,
    checks,
    register,
)


@dataclass(frozen=True)
class State:
    """The model of each cluster."""

    models: tuple[Params, ...]


def by_choice(value: Table, meta: Meta) -> tuple[int, Tensor] | None:
    """Return the cluster that a client chose and its update (P,) in float64; None for a client without samples."""
    return (int(value.keys[0]), value.values[0].double()) if int(value.counts[0]) else None


def reordered(model: Params, generator: torch.Generator) -> Params:
    """Return the model with the values of each tensor in another order."""
    other = model.clone()
    for name, tensor in model.items():
        order = torch.randperm(tensor.numel(), generator=generator)
        other[name].copy_(tensor.reshape(-1)[order].view_as(tensor))
    return other


@register("strategy", "ifca")
@dataclass(frozen=True, kw_only=True)
class IFCA(Strategy):
    """FedAvg in clusters that clients choose by their loss.

    Args:
        clusters: number of models, at least 1. 1 is FedAvg.
        lr: factor of each step of the server. 1 is FedAvg.
        weights: weights of the mean of a cluster: `uniform` (the paper) or `examples` (number of training samples).
    """

    clusters: int = 2
    lr: float = 1.0
    weights: Literal["examples", "uniform"] = "uniform"

    client: ClassVar[str] = "ifca"
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(
        strategy={"clusters": 1, "lr": 1.0}, fedavg={"weights": "uniform"}, bits=False
    )

    def __post_init__(self) -> None:
        checks.at_least(1, clusters=self.clusters)
        if self.clusters == 1:
            logging.getLogger(__name__).warning("clusters=1: this is fedavg with weights=%s", self.weights)

    def init(self, model: Params, ctx: ServerContext) -> State:
        others = range(1, self.clusters)
        return State((model, *(reordered(model, ctx.generator(f"cluster/{j}")) for j in others)))

    def model(self, state: State) -> Params:
        return state.models[0]

    def broadcast(self, state: State, ctx: ServerContext) -> dict[str, Any]:
        return {"models": state.models}

    def reduction(self, state: State, ctx: ServerContext) -> dict[str, Reduction]:
        return {"clusters": Grouped(by_choice, WeightedMean(self.weights))}

    def step(self, state: State, reduced: dict[str, dict[int, GroupMean]], ctx: ServerContext) -> tuple[State, Metrics]:
        models, found = list(state.models), reduced["clusters"]
        for j, (mean, _) in found.items():
            layout = models[j].layout
            models[j] = models[j] + self.lr * Params.expand(layout, mean.to(layout.dtypes[0]))
        weights = {f"cluster{j}": found[j].weight if j in found else 0.0 for j in range(self.clusters)}
        return State(tuple(models)), weights
