"""FedProx: FedAvg on the server, over clients that stay near the received model (`clients/fedprox.py`).

    w <- w + sum_i p_i (w_i - w);    each client:  min_w F_i(w) + mu/2 |w - received|^2

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith 2020, arXiv:1812.06127.
Differs from the paper: the mean is weighted by `num_examples`. The paper samples clients by their sizes and averages
uniformly (cohort: weighted, weights=uniform).
Equals FedAvg: the client's mu=0; equal bits in the loop, 1e-6 where the stacked plan fuses FedAvg's plain descent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl import FedAvgEquivalent, register

from .fedavg import FedAvg


@register("strategy", "fedprox")
@dataclass(frozen=True, kw_only=True)
class FedProx(FedAvg):
    """FedAvg over clients with a proximal term."""

    client: ClassVar[str] = "fedprox"
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(
        strategy={"lr": 1.0, "weights": "examples"}, client={"mu": 0.0}, bits=False
    )
