"""FedRep: a representation learnt together, below a head that each client fits to it first (`clients/fedrep.py`).

    v_i <- head epochs, u as received;    u_i <- body epochs, v_i fixed;    u <- u + sum_i p_i (u_i - u)

Collins, Hassani, Mokhtari, Shakkottai 2021, arXiv:2102.07078. `own`: patterns of the head, by default the last linear layer. Traffic
per client and round: |u| floats each way. Differs from the paper: the mean is weighted by samples (the paper's is weights=uniform).
Neutral: own=() is FedAvg; to 1e-6, as phases are trained in the loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl.method.strategy import FedAvgEquivalent
from fl.registry import register
from strategies.partial import Partial


@register("strategy", "fedrep")
@dataclass(frozen=True, kw_only=True)
class FedRep(Partial):
    client: ClassVar[str] = "fedrep"
    fedavg_equivalent: ClassVar[FedAvgEquivalent] = FedAvgEquivalent(
        strategy={"own": (), "weights": "examples"}, bits=False
    )
