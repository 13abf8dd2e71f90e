"""FedGPM's client: local steps along gradients outside the subspace of old tasks' inputs.    g <- g - (g U) U^T

Saha, Garg, Roy 2021 (ICLR), arXiv:2103.09762, Algorithm 1.  U goes down once per task (group basis); after a task the
client sends statistics of its layers' inputs, as FOT's does.  Momentum and clip keep steps outside span(U).  Weight
decay and optimisers that rescale gradients element by element do not, and are refused.
Equals FedAvg: without a basis it is plain local training, equal bits in the plans `loop` and `compiled`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fl import SGD, StepContext, register

from .fot import FOT


@register("client", "fedgpm")
@dataclass(frozen=True, kw_only=True)
class FedGPM(FOT):
    """Local training with projected gradients."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.optimiser, SGD):
            name = getattr(type(self.optimiser), "registered_as", type(self.optimiser).__name__)
            raise ValueError(
                f"optimiser: {name!r} rescales gradients, so its steps enter the subspace of old tasks; use 'sgd', "
                "or strategy fot, which projects after local training"
            )
        if self.optimiser.weight_decay:
            raise ValueError(
                f"optimiser.weight_decay: {self.optimiser.weight_decay} moves weights within the subspace of old "
                "tasks; use 0, or strategy fot, which projects after local training"
            )

    def protected(self, at: StepContext) -> Mapping[str, Tensor]:
        basis: Mapping[str, Tensor] = at.received.get("basis", {})
        return basis
