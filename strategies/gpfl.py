"""GPFL: a shared body with a conditional valve and shared class embeddings; each client has its own head.

    (phi, G, valve) <- sum_i p_i (phi, G, valve)_i;    psi_i stays with client i        (`clients/gpfl.py`)

Zhang, Hua, Wang, Song, Xue, Ma, Cao, Guan 2023, arXiv:2308.10279.  Traffic per client and round: |phi| + C h + 2 h^2 +
6 h floats each way, where h is the width of phi; the valve is the cost.  `private` is by default the last linear layer.
The server predicts with the initial head under the mean embedding, so the clients' own metrics count (clients/*,
val/*).
The embeddings start as N(0, 1), so that the first rounds are below FedPer's.
Equals FedAvg: no setting.  With the client's lam=0, mu=0, angle=0 and a valve that is frozen at 0 it is fedper on
features after a ReLU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl import Params, ServerContext, register

from .fedavg import State
from .partial import Partial

EMBEDDINGS = "gpfl.embeddings"


@register("strategy", "gpfl")
@dataclass(frozen=True, kw_only=True)
class GPFL(Partial):
    """Average body, embeddings and valve; the head is private."""

    client: ClassVar[str] = "gpfl"

    def init(self, model: Params, ctx: ServerContext) -> State:
        if EMBEDDINGS not in self.shared_names(model, ctx):
            raise ValueError(
                f"name: gpfl needs {EMBEDDINGS} among the tensors that travel; use client: gpfl or gpfl_sample, and "
                "leave it out of model.freeze and strategy.private"
            )
        return super().init(model, ctx)
