"""FedProto: clients share the mean representation of each class and nothing else; models stay their own.

    C_k = sum_i n_ik c_ik / sum_i n_ik          c_ik: mean representation of class k at client i, n_ik its samples there

Tan, Long, Liu, Zhou, Lu, Jiang, Zhang 2022, arXiv:2105.00243, Algorithm 1.  Training and prediction are the clients'
(`clients/fedproto.py`).  A class that nobody of the cohort has keeps its last prototype.
Differs from the paper: equation 6 divides once more, by the number of clients that have the class, which would shrink C_k
towards 0; that factor is left out.  The authors' program counts clients alike.
The model of the run stays the first one; what counts are the clients' own figures (clients/*, val/*).  Neutral: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fl.method.reduction import ClassMean
from fl.method.strategy import Strategy
from fl.registry import register
from fl.tensors.params import Params
from fl.tensors.sparse import Table


@dataclass(frozen=True)
class State:
    model: Params
    prototypes: Table  # float32; empty before round 0


def renewed(old: Table, new: Table) -> Table:
    """The rows of `new`, and those of `old` whose keys it lacks."""
    kept = ~torch.isin(old.keys, new.keys)
    if not kept.any():
        return new
    keys = torch.cat([new.keys, old.keys[kept]])
    order = keys.argsort()
    values, counts = (torch.cat([getattr(new, n), getattr(old, n)[kept]]) for n in ("values", "counts"))
    return Table(keys[order], values[order], counts[order])


@register("strategy", "fedproto")
@dataclass(frozen=True, kw_only=True)
class FedProto(Strategy):
    client: ClassVar[str] = "fedproto"

    def init(self, model, ctx):
        return State(
            model, Table(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 0), torch.zeros(0, dtype=torch.int64))
        )

    def broadcast(self, state, ctx):
        return {"prototypes": state.prototypes}

    def reduction(self, state, ctx):
        return {"prototypes": ClassMean()}

    def step(self, state, reduced, ctx):
        mean = reduced["prototypes"]
        new = Table(mean.keys, mean.values.float(), mean.counts.long())
        return State(state.model, renewed(state.prototypes, new)), {}
