"""APFL: FedAvg's rule; each client predicts with a mixture of the shared model and its own (`clients/apfl.py`).

    w <- w + sum_i p_i (w_i - w);    predict with alpha v_i + (1 - alpha) w

Deng, Kamani, Mahdavi 2020, arXiv:2003.13461. The shared part is FedAvg's for every alpha, and so is the traffic. The paper's mean is
weights=uniform.  Neutral: any alpha, to 1e-6 (the clients train in the loop).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl.method.strategy import FedAvgEquivalent
from fl.registry import register
from strategies.fedavg import FedAvg


@register("strategy", "apfl")
@dataclass(frozen=True, kw_only=True)
class APFL(FedAvg):
    client: ClassVar[str] = "apfl"
    fedavg_equivalent: ClassVar[FedAvgEquivalent] = FedAvgEquivalent({"lr": 1.0, "weights": "examples"}, bits=False)
