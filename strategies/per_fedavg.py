"""Per-FedAvg: FedAvg over clients that train for the loss after one more local step (`clients/per_fedavg.py`).

    w <- w + sum_i p_i (w_i - w)

Fallah, Mokhtari, Ozdaglar 2020, arXiv:2002.07948.  eval/* is measured before that step, clients/* after it; the traffic
is FedAvg's.  Differs from the paper: the mean is weighted by samples (weights=uniform is the paper's).
Equals FedAvg: the client's alpha=0, to 1e-6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl import FedAvgEquivalent, register

from .fedavg import FedAvg


@register("strategy", "per_fedavg")
@dataclass(frozen=True, kw_only=True)
class PerFedAvg(FedAvg):
    """FedAvg over clients that train an initialisation for one step of their own."""

    client: ClassVar[str] = "per_fedavg"
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(
        strategy={"lr": 1.0, "weights": "examples"}, client={"alpha": 0.0}, bits=False
    )
