"""APFL: FedAvg on the server. Each client predicts with a mixture of the shared model and its own (`clients/apfl.py`).

    w <- w + sum_i p_i (w_i - w);    predict with alpha v_i + (1 - alpha) w

Deng, Kamani, Mahdavi 2020, arXiv:2003.13461.  The shared part and its traffic are FedAvg's for every alpha.
Differs from the paper: the mean is weighted by samples (weights=uniform is the paper's).
Equals FedAvg: any alpha, to 1e-6 (the clients train in the loop).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl import FedAvgEquivalent, register

from .fedavg import FedAvg


@register("strategy", "apfl")
@dataclass(frozen=True, kw_only=True)
class APFL(FedAvg):
    """FedAvg over clients that also train a model of their own and mix the two."""

    client: ClassVar[str] = "apfl"
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(
        strategy={"lr": 1.0, "weights": "examples"}, bits=False
    )
