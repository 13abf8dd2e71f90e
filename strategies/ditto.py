"""Ditto: FedAvg on the server. Each client also trains a personal model near the shared one (`clients/ditto.py`).

    w <- w + sum_i p_i (w_i - w);    each client:  min_v F_i(v) + lam/2 |v - w|^2

Li, Hu, Beirami, Smith 2021, arXiv:2012.04221.  The shared part and its traffic are FedAvg's for every lam.
Differs from the paper: the mean is weighted by samples (weights=uniform is the paper's).
Equals FedAvg: any lam, to 1e-6 (the clients train in the loop).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl import FedAvgEquivalent, register

from .fedavg import FedAvg


@register("strategy", "ditto")
@dataclass(frozen=True, kw_only=True)
class Ditto(FedAvg):
    """FedAvg over clients that also train a personal model."""

    client: ClassVar[str] = "ditto"
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(
        strategy={"lr": 1.0, "weights": "examples"}, bits=False
    )
