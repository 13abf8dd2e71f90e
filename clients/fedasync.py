"""FedAsync's clients: local training near what was received; what is sent is the model itself, no difference.

    min_w  L_k(w) + mu/2 ||w - received||^2        send w

Xie, Koyejo, Gupta 2019, arXiv:1903.03934, Algorithm 1, Option I (mu is its rho); mu=0 is Option II.  A server that has moved on
can mix a whole model into its own without knowing what the client began with.  The term enters as its gradient.
Differs from the paper: a budget of epochs or steps for all in place of a random number of steps for each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from fl.method.local_training import LocalTraining
from fl.registry import register


@register("client", "fedasync")
@dataclass(frozen=True, kw_only=True)
class FedAsync(LocalTraining):
    mu: float = 0.0

    sends: ClassVar[tuple[str, ...]] = ("trained",)
    delta_reference: ClassVar[Mapping[str, str]] = {"trained": "model"}

    def __post_init__(self):
        super().__post_init__()
        if self.mu < 0:
            raise ValueError(f"mu: {self.mu} is negative; 0 is plain local training")

    def gradient(self, grad, params, at):
        return grad + self.mu * (params - at.start) if self.mu else grad

    def finish(self, end):
        return {"trained": end.params}, None

    def context_after_training(self, ctx, reply):
        return replace(ctx, received={**ctx.received, "model": reply.update.groups["trained"]})
