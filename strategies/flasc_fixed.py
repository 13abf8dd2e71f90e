"""FLASC's baseline with sparse adapters: one dense round fixes the mask; then clients train the masked entries only.

    round 0   all entries, both ways;   M <- the floor(down P) largest |w| after it, w <- M * w
    later     M * w down, M * change up;   w <- server optimiser on M

Kuo, Raje, Rajesh, Smith 2024, arXiv:2406.05233.  M is sent with its positions in every round.  `up` has no effect and
`decay` must be 1.
Equals FedAvg: no setting.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fl import FedAvgEquivalent, Metrics, Params, ServerContext, Sparse, register

from .flasc import FLASC, State


@register("strategy", "flasc_fixed")
@dataclass(frozen=True, kw_only=True)
class FLASCFixed(FLASC):
    """FLASC with a mask that is chosen once, after round 0."""

    client: ClassVar[str] = "flasc_fixed"
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay != 1:
            raise ValueError(f"decay: {self.decay} is not 1; a fixed mask keeps its density, flasc can change it")

    def densities(self, round_: int) -> tuple[float, float]:
        return (1.0, 1.0) if round_ == 0 else (self.down, self.down)

    def masked(self, state: State) -> Sparse | Params:
        if state.positions is None:
            return super().masked(state)
        return Sparse(state.positions, state.w.compact()[state.positions], state.w.numel)

    def step(self, state: State, reduced: Tensor, ctx: ServerContext) -> tuple[State, Metrics]:
        stepped, _ = super().step(state, reduced, ctx)
        positions = state.positions
        if positions is None:
            chosen = super().masked(stepped)
            positions = chosen.positions if isinstance(chosen, Sparse) else torch.arange(stepped.w.numel)
        outside = torch.ones(stepped.w.numel, dtype=torch.bool).index_fill_(0, positions, False)
        w = Params.expand(stepped.w.layout, stepped.w.compact().masked_fill(outside, 0.0))
        return replace(stepped, w=w, positions=positions), {}
