"""FedPer: the body is averaged, the head is each client's own, both are trained together.

    (u, v_i) <- local steps from (u, v_i);    u <- u + sum_i p_i (u_i - u)

Arivazhagan, Aggarwal, Singh, Choudhary 2019, arXiv:1912.00818. `own`: patterns of the personal layers, by default the last linear
layer (the paper's K_P = 1). Traffic per client and round: |u| floats each way. Differs from the paper: a client's first head is the run's,
the same for all. Neutral: own=() is FedAvg, to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl.method.strategy import FedAvgEquivalent
from fl.registry import register
from strategies.partial import Partial


@register("strategy", "fedper")
@dataclass(frozen=True, kw_only=True)
class FedPer(Partial):
    fedavg_equivalent: ClassVar[FedAvgEquivalent] = FedAvgEquivalent(strategy={"own": (), "weights": "examples"})
