"""Per-FedAvg: FedAvg's rule over clients that train for the loss after one more step (`clients/per_fedavg.py`).

    w <- w + sum_i p_i (w_i - w)

Fallah, Mokhtari, Ozdaglar 2020, arXiv:2002.07948. Traffic is FedAvg's; the paper's mean is weights=uniform. eval/* is before that
step, clients/* after it.  Neutral: the client's alpha=0, to 1e-6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl.method.strategy import FedAvgEquivalent
from fl.registry import register
from strategies.fedavg import FedAvg


@register("strategy", "per_fedavg")
@dataclass(frozen=True, kw_only=True)
class PerFedAvg(FedAvg):
    client: ClassVar[str] = "per_fedavg"
    fedavg_equivalent: ClassVar[FedAvgEquivalent] = FedAvgEquivalent(
        {"lr": 1.0, "weights": "examples"}, {"alpha": 0.0}, bits=False
    )
