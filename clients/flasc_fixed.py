"""Training of what was received alone:    g <- M * g;    send those entries of the change

Kuo et al. 2024, arXiv:2406.05233, the baseline with a fixed mask M: the positions that the broadcast has.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from clients.flasc import FLASC
from fl.registry import register
from fl.tensors.params import Params
from fl.tensors.sparse import Sparse


@register("client", "flasc_fixed")
@dataclass(frozen=True, kw_only=True)
class FLASCFixed(FLASC):
    """Sends what it received: those entries, and no others, are trained."""

    def gradient(self, grad, params, at):
        model = at.received["model"]
        if isinstance(model, Params):
            return grad
        mask = Sparse(model.positions, torch.ones_like(model.values), model.size).dense()
        return grad * Params.expand(grad.layout, mask.expand(*grad.batch, -1).contiguous())

    def finish(self, end):
        model = end.received["model"]
        if isinstance(model, Params):
            return {"model": end.delta}, None
        values = end.delta.compact()[..., model.positions]
        return {"model": Sparse(model.positions.expand(values.shape).contiguous(), values, model.size)}, None
