"""Local training of the received entries only:    g <- M * g;    send those entries of the change

Kuo et al. 2024, arXiv:2406.05233, the baseline with a fixed mask M: the positions of the broadcast's entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fl import Params, Sparse, StepContext, TrainingResult, Tree, register

from .flasc import FLASC


@register("client", "flasc_fixed")
@dataclass(frozen=True, kw_only=True)
class FLASCFixed(FLASC):
    """Trains and sends only the entries that it received."""

    def gradient(self, grad: Params, params: Params, at: StepContext) -> Params:
        model = at.received["model"]
        if isinstance(model, Params):
            return grad
        mask = Sparse(model.positions, torch.ones_like(model.values), model.size).dense()
        return grad * Params.expand(grad.layout, mask.expand(*grad.batch, -1).contiguous())

    def finish(self, end: TrainingResult) -> tuple[Mapping[str, Tree], Tree]:
        model = end.received["model"]
        if isinstance(model, Params):
            return {"model": end.delta}, None
        values = end.delta.compact()[..., model.positions]
        return {"model": Sparse(model.positions.expand(values.shape).contiguous(), values, model.size)}, None
