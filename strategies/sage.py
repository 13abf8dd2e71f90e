"""SAGE: FedAvg over clients that learn soft pseudo-labels between those of the local and the received model.

    w <- w + sum_i p_i (w_i - w)            (`clients/sage.py` has the local steps)

SAGE, CVPR 2025.  p_i counts all training rows of client i, with and without
labels; the client's `weight_view` changes that.  The traffic is FedAvg's.
Equals FedAvg: the client's threshold above 1, weight_view=train, to 1e-6 (it trains in the loop).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl import FedAvgEquivalent, register

from .fedavg import FedAvg


@register("strategy", "sage")
@dataclass(frozen=True, kw_only=True)
class SAGE(FedAvg):
    """FedAvg over clients that learn mixed pseudo-labels of two models."""

    client: ClassVar[str] = "sage"
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(
        strategy={"lr": 1.0, "weights": "examples"},
        client={"threshold": 2.0, "weight_view": "train"},
        bits=False,
    )
