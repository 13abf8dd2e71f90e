"""Ditto: FedAvg's rule; beside it each client trains a model of its own, held near the shared one (`clients/ditto.py`).

    w <- w + sum_i p_i (w_i - w);    min_v F_i(v) + lam/2 |v - w|^2  by each client

Li, Hu, Beirami, Smith 2021, arXiv:2012.04221. The shared part is FedAvg's for every lam, and so is the traffic. Differs from the paper: the
mean is weighted by samples (weights=uniform: not).  Neutral: any lam, to 1e-6 (the clients train in the loop).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl.method.strategy import FedAvgEquivalent
from fl.registry import register
from strategies.fedavg import FedAvg


@register("strategy", "ditto")
@dataclass(frozen=True, kw_only=True)
class Ditto(FedAvg):
    client: ClassVar[str] = "ditto"
    fedavg_equivalent: ClassVar[FedAvgEquivalent] = FedAvgEquivalent({"lr": 1.0, "weights": "examples"}, bits=False)
