"""LG-FedAvg: each client has its own body, the layers on top of it are averaged.

    (u_i, v) <- local steps from (u_i, v);    v <- v + sum_i p_i (v_i - v)

Liang, Liu, Ziyin, Allen, Auerbach, Brent, Salakhutdinov, Morency 2020, arXiv:2001.01523. `shared`: patterns of the global layers, by
default the last linear one. Traffic per client and round: |v| floats each way. Differs from the paper: no FedAvg rounds before
(begin from such a run with model.init), and no auxiliary losses on the representation. Neutral: shared=("*",) is FedAvg, to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fl.method.strategy import FedAvgEquivalent
from fl.models.layers import head_names
from fl.registry import register
from fl.tensors.params import match
from strategies.partial import Partial, shared_names


@register("strategy", "lg_fedavg")
@dataclass(frozen=True, kw_only=True)
class LGFedAvg(Partial):
    own: ClassVar[None] = None
    shared: tuple[str, ...] | None = None
    weights: Literal["examples", "uniform"] = "examples"

    fedavg_equivalent: ClassVar[FedAvgEquivalent] = FedAvgEquivalent(strategy={"shared": ("*",), "weights": "examples"})

    def __post_init__(self):
        super().__post_init__()
        if self.shared == ():
            raise ValueError("shared: () shares nothing; use strategy local")

    def own_names(self, model, ctx):
        shared = head_names(ctx.module, model) if self.shared is None else match(model, self.shared)
        return shared_names(list(model), shared)
