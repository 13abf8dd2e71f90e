"""q-FedAvg (q-FFL): clients with a high loss count for more, so that accuracies become more equal.

    model <- model + sum_k F_k^q delta_k / sum_k h_k,          h_k = F_k^q + q F_k^(q-1) L |delta_k|^2

Li, Sanjabi, Beirami, Smith 2020, arXiv:1905.10497, Algorithm 2, with numerator and denominator divided by L (its
Delta_k is -L F_k^q delta_k).  F_k is the client's loss at the received model, L = 1 / lr; the clients compute the
terms of both sums (`clients/q_fedavg.py`).  The sums are unweighted; the paper samples clients by their sizes
(cohort: weighted).
Equals FedAvg: the client's q=0 is FedAvg with uniform weights, to 1e-6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fl import FedAvgEquivalent, Metrics, Params, Reduction, ServerContext, Strategy, Sum, register


@register("strategy", "q_fedavg")
@dataclass(frozen=True, kw_only=True)
class QFedAvg(Strategy):
    """Weigh clients by a power of their loss."""

    client: ClassVar[str] = "q_fedavg"
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(
        client={"q": 0.0}, fedavg={"weights": "uniform"}, bits=False
    )

    def reduction(self, state: Params, ctx: ServerContext) -> dict[str, Reduction]:
        return {"model": Sum(), "h": Sum()}

    def step(self, state: Params, reduced: dict[str, Any], ctx: ServerContext) -> tuple[Params, Metrics]:
        h = float(reduced["h"])
        return (state + reduced["model"] / h if h > 0 else state), {}
