"""Gradient projection memory with federated averaging (FedGPM): clients keep every local gradient out of old tasks' subspaces.

    at the client:  g <- g - (g U) U^T  in each step       at the server:  FedAvg;  U grows after each task as in FOT

Saha, Garg, Roy 2021 (ICLR), arXiv:2103.09762, made federated by FOT's exact statistics (`strategies/fot.py`: gram, energy). The basis
is kept by clients and goes down once per task and client, sum_l d_l k_l floats. With plain SGD it is FOT whose projection comes
before the local steps see each other; local Adam or weight decay would leave the subspace again.
Differs from the paper: all of a task's inputs enter, not some hundred samples; the count is the criterion's, smallest k exceeding it
(the authors' program takes one fewer). Neutral: FedAvg as long as there is no basis (a single task), to the bit in a loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fl.method.messages import Broadcast, Static
from fl.registry import register
from fl.tensors.params import Params
from strategies.fot import FOT, State


@register("strategy", "fedgpm")
@dataclass(frozen=True, kw_only=True)
class FedGPM(FOT):
    gpse: Literal["sketch", "gram"] = "gram"
    residual_ratio: Literal["norm", "energy"] = "energy"

    client: ClassVar[str] = "fedgpm"

    def broadcast(self, state, ctx):
        plain = super().broadcast(state, ctx)
        static = {"basis": Static(ctx.period, state.bases)} if state.bases else {}
        return Broadcast(shared=plain.shared, config=plain.config, static=static)

    def kept(self, step: Params, state: State, ctx) -> Params:
        """Biases as `bias` says; weights as they came, projected by the clients."""
        return self.biases_kept(step, ctx)
