"""FedALA: FedAvg's rule over clients that begin from a mixture of their old and the received model (`clients/fedala.py`).

    w <- w + sum_i p_i (w_i - w)

Zhang, Hua, Wang, Song, Xue, Ma, Guan 2023, arXiv:2212.01197. Traffic is FedAvg's.  Neutral: the client's eta=0, to 1e-6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl.method.strategy import FedAvgEquivalent
from fl.registry import register
from strategies.fedavg import FedAvg


@register("strategy", "fedala")
@dataclass(frozen=True, kw_only=True)
class FedALA(FedAvg):
    client: ClassVar[str] = "fedala"
    fedavg_equivalent: ClassVar[FedAvgEquivalent] = FedAvgEquivalent(
        {"lr": 1.0, "weights": "examples"}, {"eta": 0.0}, bits=False
    )
