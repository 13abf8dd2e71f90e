"""pFedHN: a hypernetwork of the server makes each client's model from a learned embedding of the client.

    theta_i = h(e_i; phi) goes down;    client: local steps theta_i -> theta'_i;    theta'_i - theta_i comes up
    phi   <- step along the mean over clients of  (d theta_i / d phi)^T (theta_i - theta'_i)
    e_i   <- step along                           (d theta_i / d e_i)^T (theta_i - theta'_i)

Shamsian, Navon, Fetaya, Chechik 2021, arXiv:2103.04628, Algorithm 1.  theta_i - theta'_i has the local learning rate in
it and takes the place of a gradient, without division.  Traffic per client and round: d floats each way; phi and e_i
are the server's alone (`strategies/hypernetwork.py`).  The authors train one client in a round: cohort size 1.
A held-out client gets the model of the embedding 0; pefll is the method for clients that never train.  clients/*
measures the clients' own models, eval/* the model of the embedding 0, which is also saved.
Differs from the paper: the first models are near the run's first model, because the heads start small; gradients are
clipped (`clip`); with momentum or weight decay, embeddings of absent clients move, too.
Equals FedAvg: no setting.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl import (
    SGD,
    Broadcast,
    EvaluateModel,
    EvaluationGenerator,
    Metrics,
    Params,
    PseudoGradient,
    Reduction,
    ServerContext,
    ServerOptimiser,
    join,
    register,
)

from .hypernetwork import Hypernetwork, PullBack, State

EMBEDDINGS = "embeddings"


@register("strategy", "pfedhn")
@dataclass(frozen=True, kw_only=True)
class PFedHN(Hypernetwork):
    """Make each client's model from a learned embedding of the client."""

    server_optimiser: ServerOptimiser = field(
        default_factory=lambda: PseudoGradient(optimiser=SGD(momentum=0.9, weight_decay=1e-3), lr=1e-2)
    )

    def first_networks(self, model: Params, ctx: ServerContext) -> Params:
        embeddings = torch.randn(ctx.population, self.length(ctx), generator=ctx.generator("embeddings"))
        return join(super().first_networks(model, ctx), Params.of({EMBEDDINGS: embeddings}))

    def embeddings(self, state: State, clients: np.ndarray) -> dict[int, Tensor]:
        """Return the embeddings of `clients`; 0 for those that never train."""
        table = state.networks[EMBEDDINGS]
        return {int(c): table[c] if c < len(table) else torch.zeros(state.length) for c in clients}

    def broadcast(self, state: State, ctx: ServerContext) -> Broadcast:
        return self.generated(state, self.embeddings(state, ctx.cohort))

    def reduction(self, state: State, ctx: ServerContext) -> dict[str, Reduction]:
        return {"model": PullBack(state.hyper, self.embeddings(state, ctx.cohort))}

    def evaluation(self, state: State, ctx: ServerContext) -> EvaluationGenerator:
        generated = self.generated(state, self.embeddings(state, ctx.evaluated))
        return (yield EvaluateModel(generated.with_model(self.model(state))))

    def step(self, state: State, reduced: dict[str, Any], ctx: ServerContext) -> tuple[State, Metrics]:
        pulled, of_embeddings = reduced["model"], torch.zeros_like(state.networks[EMBEDDINGS])
        for client, gradient in pulled.descriptors.items():
            of_embeddings[client] = gradient
        mean = pulled.hyper / len(pulled.descriptors)
        return self.moved(state, join(mean, Params.of({EMBEDDINGS: of_embeddings})))
