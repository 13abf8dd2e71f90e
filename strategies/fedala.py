"""FedALA: FedAvg over clients that start from a mixture of their old and the received model (`clients/fedala.py`).

    w <- w + sum_i p_i (w_i - w)

Zhang, Hua, Wang, Song, Xue, Ma, Guan 2023, arXiv:2212.01197.  The traffic is FedAvg's.
Equals FedAvg: the client's eta=0, to 1e-6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl import FedAvgEquivalent, register

from .fedavg import FedAvg


@register("strategy", "fedala")
@dataclass(frozen=True, kw_only=True)
class FedALA(FedAvg):
    """FedAvg over clients with adaptive local aggregation."""

    client: ClassVar[str] = "fedala"
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(
        strategy={"lr": 1.0, "weights": "examples"}, client={"eta": 0.0}, bits=False
    )
