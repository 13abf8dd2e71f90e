"""FedGPM's client: local steps along gradients without their part in what old tasks' inputs span.    g <- g - (g U) U^T

Saha, Garg, Roy 2021 (ICLR), arXiv:2103.09762, Algorithm 1. U comes down once per task (group basis), and after a task the client sends
what its layers' inputs span, as FOT's does.  Neutral: without a memory it is plain local training, to the bit in a loop.
"""

from __future__ import annotations

from dataclasses import dataclass

from clients.fot import FOT
from fl.registry import register
from fl.tensors import subspace


@register("client", "fedgpm")
@dataclass(frozen=True, kw_only=True)
class FedGPM(FOT):
    def gradient(self, grad, params, at):
        memory = at.received.get("basis", {})
        return (
            grad.replace({n: subspace.project(grad[n], u) for n, u in memory.items() if n in grad}) if memory else grad
        )
