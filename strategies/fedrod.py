"""FedROD: FedAvg on a model trained with a balanced loss. Clients add heads of their own (`clients/fedrod.py`).

    w <- w + sum_i p_i (w_i - w);    predict with g(x) + p_i(h(x))

Chen, Chao 2022, arXiv:2107.00778.  eval/* measures the shared model g, clients/* measures g + p_i; the traffic is
FedAvg's.
Equals FedAvg: the client's balance=0, to 1e-6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl import FedAvgEquivalent, Params, ServerContext, register

from .fedavg import FedAvg, State


@register("strategy", "fedrod")
@dataclass(frozen=True, kw_only=True)
class FedROD(FedAvg):
    """FedAvg over clients with a balanced loss and a personal head."""

    client: ClassVar[str] = "fedrod"
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(
        strategy={"lr": 1.0, "weights": "examples"}, client={"balance": 0.0}, bits=False
    )

    def init(self, model: Params, ctx: ServerContext) -> State:
        """Return the first state, without the head that each client adds and keeps (`personal.*`)."""
        return super().init(model.select([name for name in model if not name.startswith("personal.")]), ctx)
