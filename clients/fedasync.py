"""FedAsync's clients: local training near the received model; a client sends its whole model, not a difference.

    min_w  L_k(w) + mu/2 ||w - received||^2        send w

Xie, Koyejo, Gupta 2019, arXiv:1903.03934, Algorithm 1, Option I (mu is its rho); mu=0 is Option II.  A server that
has moved on can mix a whole model into its own without knowing the client's starting point.  The term enters as its
gradient.
Differs from the paper: all clients have one budget of epochs or steps; the paper draws a number of steps for each.
Equals plain local training: mu=0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from fl import ClientContext, LocalTraining, Penalty, Reply, StepContext, TrainingResult, Tree, checks, register


@register("client", "fedasync")
@dataclass(frozen=True, kw_only=True)
class FedAsync(LocalTraining):
    """Local training with a proximal term, which sends the trained model.

    Args:
        mu: weight of the squared distance to the received model, at least 0. 0 is plain local training.
    """

    mu: float = 0.0

    sends: ClassVar[tuple[str, ...]] = ("trained",)
    delta_reference: ClassVar[Mapping[str, str]] = {"trained": "model"}

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.not_negative(mu=self.mu, hint="0 is plain local training")

    def penalty(self, at: StepContext) -> Penalty | None:
        return Penalty(self.mu, at.start) if self.mu else None

    def finish(self, end: TrainingResult) -> tuple[Mapping[str, Tree], Tree]:
        return {"trained": end.params}, None

    def context_after_training(self, ctx: ClientContext, reply: Reply) -> ClientContext:
        return replace(ctx, received={**ctx.received, "model": reply.update.groups["trained"]})
