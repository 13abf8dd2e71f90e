"""Gradient projection memory with federated averaging (FedGPM): every local gradient stays out of old tasks' subspaces.

    at the client:  g <- g - (g U) U^T  in each step       at the server:  FedAvg;  U grows after each task as in FOT

Saha, Garg, Roy 2021 (ICLR), arXiv:2103.09762, with FOT's exact statistics (`strategies/fot.py`: gram, energy).
Clients keep the basis; it goes down once per task and client, sum_l d_l k_l floats.  With plain SGD it is FOT with a
projection in each local step.  Local Adam or weight decay would enter the subspace again; `clients/fedgpm.py` refuses
them.  A server optimiser other than `plain` has its step projected as in FOT.
Differs from the paper: all inputs of a task enter, not some hundred samples; k is the smallest count that exceeds the
criterion (the authors' program takes one fewer).
Equals FedAvg: as long as there is no basis (a single task), equal bits in the plans `loop` and `compiled`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from fl import Broadcast, Params, Plain, ServerContext, Static, register

from .fot import FOT, State


@register("strategy", "fedgpm")
@dataclass(frozen=True, kw_only=True)
class FedGPM(FOT):
    """FOT with projected local gradients in place of a projected server step.

    Args:
        gpse: what clients send about layer inputs: `gram` (exact) or `sketch`.
        residual_ratio: `energy` (the paper's criterion) or `norm`.
    """

    gpse: Literal["sketch", "gram"] = "gram"
    residual_ratio: Literal["norm", "energy"] = "energy"

    client: ClassVar[str] = "fedgpm"

    def broadcast(self, state: State, ctx: ServerContext) -> Broadcast:
        static = {"basis": Static(state.tasks, state.bases)} if state.bases else {}
        return replace(super().broadcast(state, ctx), static=static)

    def allowed(self, change: Params, state: State, ctx: ServerContext) -> Params:
        if not isinstance(self.server_optimiser, Plain):  # its moments are older than the basis, or rescaled
            return super().allowed(change, state, ctx)
        return self.without_frozen_biases(change, ctx)  # the clients have projected the weights
