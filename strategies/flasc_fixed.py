"""FLASC's baseline of sparse adapters: one dense round, then the mask of its outcome for good, and clients train that alone.

    round 0   all entries, both ways;   M <- the floor(down P) largest |w| after it, w <- M * w
    then      M * w down, M * change up;   w <- server optimiser on M

Kuo, Raje, Rajesh, Smith 2024, arXiv:2406.05233. M is sent with its positions in every round; `up` and `decay` mean nothing.
Neutral: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fl.method.strategy import FedAvgEquivalent
from fl.registry import register
from fl.tensors.params import Params
from fl.tensors.sparse import Sparse
from strategies.flasc import FLASC, State


@register("strategy", "flasc_fixed")
@dataclass(frozen=True, kw_only=True)
class FLASCFixed(FLASC):
    client: ClassVar[str] = "flasc_fixed"
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = None

    def __post_init__(self):
        super().__post_init__()
        if self.decay != 1:
            raise ValueError(f"decay: {self.decay} is not 1; a fixed mask keeps its density, flasc can change it")

    def densities(self, round_):
        return (1.0, 1.0) if round_ == 0 else (self.down, self.down)

    def masked(self, state):
        if state.positions is None:
            return super().masked(state)
        return Sparse(state.positions, state.w.compact()[state.positions], state.w.numel)

    def step(self, state, mean, ctx):
        after, _ = super().step(state, mean, ctx)
        positions = state.positions
        if positions is None:
            positions = super().masked(after).positions
        outside = torch.ones(after.w.numel, dtype=torch.bool).index_fill_(0, positions, False)
        w = Params.expand(after.w.layout, after.w.compact().masked_fill(outside, 0.0))
        return State(w, after.moments, after.steps, positions), {}
