"""FedProto: clients share the mean representation of each class and nothing else; models stay with the clients.

    C_k = sum_i n_ik c_ik / sum_i n_ik          c_ik: mean representation of class k at client i, n_ik its samples there

Tan, Long, Liu, Zhou, Lu, Jiang, Zhang 2022, arXiv:2105.00243, Algorithm 1.  Clients train and predict
(`clients/fedproto.py`).  A class without samples in the cohort keeps its last prototype.
Differs from the paper: equation 6 divides once more, by the number of clients that have the class, which would shrink
C_k towards 0; that factor is left out.  `weights: uniform` gives all clients that have the class equal weight, as the
authors' program and PFLlib do.  The run's model keeps its initial values; the clients' own metrics count (clients/*,
val/*).
Equals FedAvg: no setting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from fl import ClassMean, Metrics, Params, Reduction, ServerContext, Strategy, Table, register


@dataclass(frozen=True)
class State:
    """The initial model and the prototypes (float32; empty before round 0)."""

    model: Params
    prototypes: Table


def renewed(old: Table, new: Table) -> Table:
    """Return the rows of `new`, and the rows of `old` whose keys `new` lacks."""
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
    """Average class prototypes.

    Args:
        weights: n_ik is the number of samples ("examples", the paper) or 1 ("uniform") for a client that has class k.
    """

    weights: Literal["examples", "uniform"] = "examples"

    client: ClassVar[str] = "fedproto"

    def init(self, model: Params, ctx: ServerContext) -> State:
        none = torch.zeros(0, dtype=torch.int64)
        return State(model, Table(none, torch.zeros(0, 0), none))

    def broadcast(self, state: State, ctx: ServerContext) -> dict[str, Table]:
        return {"prototypes": state.prototypes}

    def reduction(self, state: State, ctx: ServerContext) -> dict[str, Reduction]:
        return {"prototypes": ClassMean(self.weights)}

    def step(self, state: State, reduced: dict[str, Table], ctx: ServerContext) -> tuple[State, Metrics]:
        mean = reduced["prototypes"]
        new = Table(mean.keys, mean.values.float(), mean.counts.long())
        return State(state.model, renewed(state.prototypes, new)), {}
