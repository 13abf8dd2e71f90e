"""FedROD: FedAvg's rule on a model trained with a balanced loss; clients add heads of their own (`clients/fedrod.py`).

    w <- w + sum_i p_i (w_i - w);    predict with g(x) + p_i(h(x))

Chen, Chao 2022, arXiv:2107.00778. eval/* is of the shared model g, clients/* of g + p_i; traffic is FedAvg's.
Neutral: the client's balance=0, to 1e-6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl.method.strategy import FedAvgEquivalent
from fl.registry import register
from strategies.fedavg import FedAvg


@register("strategy", "fedrod")
@dataclass(frozen=True, kw_only=True)
class FedROD(FedAvg):
    client: ClassVar[str] = "fedrod"
    fedavg_equivalent: ClassVar[FedAvgEquivalent] = FedAvgEquivalent(
        {"lr": 1.0, "weights": "examples"}, {"balance": 0.0}, bits=False
    )
