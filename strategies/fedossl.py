"""FedoSSL: FedAvg of models that cluster rows without labels, with centroids that all clients share.

    w <- w + mean_i (w_i - w)
    G: 500 steps on  -mean_j cos(s_j, softmax(z_j G^T / .1)),  s = sinkhorn(Z G^T);    rows of G to norm 1 after each

Z are the clients' local centroids z_j of unit norm, G the shared centroids (C, D). Then the rows of G are renamed: row
c of a class with labels is the centroid that is matched to the class's mean feature (Hungarian method, cosines); the
other centroids follow in order. The mean features are means over clients; a class that no client of the cohort has
keeps its last one. Clients are `clients/fedossl.py`, evaluation is `task: open_world`.
Bytes per client, with D features, S classes with labels and C classes: up 4 (|w| + 32 D + S D) + 16 S (ids and counts),
down 4 (|w| + C D).
Zhang, Ma, Guo, Xu 2023, arXiv:2305.00771.  The mean is uniform, as in the paper.
Differs from the authors' program: two classes never take the same centroid.
Equals FedAvg: no setting (the logits are cosines).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fl import (
    ClassMean,
    Exchange,
    FedAvgEquivalent,
    OptimiserState,
    Params,
    Reduction,
    RoundGenerator,
    ServerContext,
    ServerWork,
    Stack,
    Table,
    WeightedMean,
    checks,
    clustering,
    register,
)

from .fedavg import FedAvg
from .fedproto import renewed

TEMPERATURE = 0.1
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4


@dataclass(frozen=True)
class State:
    """The model, what the server optimiser remembers, the shared centroids, and the mean features of seen classes."""

    model: Params
    optimiser: OptimiserState
    centroids: Tensor
    means: Table


def fitted(centroids: Tensor, local: Tensor, steps: int, lr: float) -> Tensor:
    """Return the shared centroids (C, D) after SGD steps on the local ones (n, D); rows have unit norm."""
    if not len(local):
        return centroids
    g, velocity = centroids.clone(), torch.zeros_like(centroids)
    for _ in range(steps):
        leaf = g.detach().requires_grad_()
        cosines = local @ leaf.T
        balanced = clustering.sinkhorn(cosines)
        loss = -F.cosine_similarity(balanced, (cosines / TEMPERATURE).softmax(-1)).mean()
        (gradient,) = torch.autograd.grad(loss, leaf)
        velocity = MOMENTUM * velocity + gradient + WEIGHT_DECAY * g
        g = F.normalize(g - lr * velocity, dim=-1)
    return g


def renamed(centroids: Tensor, means: Table) -> Tensor:
    """Return the centroids (C, D) in another order: row c is matched to the mean feature of class c, if there is one.

    >>> means = Table(torch.tensor([2]), torch.tensor([[0.0, 2.0]]), torch.tensor([1]))
    >>> renamed(torch.tensor([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]]), means).tolist()
    [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]
    """
    count = len(centroids)
    rows, columns = clustering.matching(F.normalize(means.values.to(centroids.dtype), dim=-1) @ centroids.T)
    order = torch.full((count,), -1)
    order[means.keys[rows]] = columns
    order[order < 0] = torch.tensor([k for k in range(count) if k not in set(columns.tolist())], dtype=torch.int64)
    return centroids[order]


def shared_centroids(centroids: Tensor, local: Tensor, means: Table, steps: int, lr: float) -> Tensor:
    """Return the next shared centroids: fitted to the local ones, and renamed."""
    return renamed(fitted(centroids, local, steps, lr), means)


@register("strategy", "fedossl")
@dataclass(frozen=True, kw_only=True)
class FedoSSL(FedAvg):
    """FedAvg with shared centroids of classes with and without labels.

    Args:
        weights: weights of the mean: `uniform` (the paper) or `examples` (number of training rows).
        centroid_steps: SGD steps on the shared centroids per round, at least 0.
        centroid_lr: learning rate of these steps, positive.
    """

    weights: Literal["examples", "uniform"] = "uniform"
    centroid_steps: int = 500
    centroid_lr: float = 0.01

    client: ClassVar[str] = "fedossl"
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = None
    example_config: ClassVar[Mapping[str, Any]] = {"strategy.centroid_steps": 10}

    def __post_init__(self) -> None:
        checks.not_negative(centroid_steps=self.centroid_steps)
        checks.positive(centroid_lr=self.centroid_lr)

    def init(self, model: Params, ctx: ServerContext) -> State:  # type: ignore[override]  # a state with more fields
        head = f"{getattr(ctx.module, 'last', None)}.weight"
        if head not in model:
            raise ValueError(
                "name: fedossl trains the whole last linear layer of the model; use client: fedossl, leave that layer "
                "out of model.freeze, and use no adapter for it"
            )
        centroids = F.normalize(torch.randn(model[head].shape, generator=ctx.generator("centroids")), dim=-1)
        none = torch.zeros(0, dtype=torch.int64)
        return State(model, self.server_optimiser.init(model), centroids, Table(none, centroids[:0], none))

    def broadcast(self, state: State, ctx: ServerContext) -> dict[str, Any]:
        return {"model": state.model, "centroids": state.centroids}

    def reduction(self, state: State, ctx: ServerContext) -> Mapping[str, Reduction]:  # type: ignore[override]
        return {"model": WeightedMean(self.weights), "centroids": Stack(), "means": ClassMean("uniform")}

    def round(self, state: State, ctx: ServerContext) -> RoundGenerator:
        outcome = yield Exchange(self.broadcast(state, ctx), self.reduction(state, ctx))
        if outcome.value is None:
            return state, {}
        found = outcome.value
        new = Table(found["means"].keys, found["means"].values.float(), found["means"].counts.long())
        means = renewed(state.means, new)
        local = torch.cat([centroids for centroids, _ in found["centroids"]])
        arguments = state.centroids, local, means, self.centroid_steps, self.centroid_lr
        centroids = yield ServerWork(shared_centroids, arguments)
        model, optimiser = self.server_optimiser.step(state.model, found["model"], state.optimiser, self.lr)
        return State(model, optimiser, centroids, means), {}
