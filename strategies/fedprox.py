"""FedProx: the server step of FedAvg over clients that are held near what they received (`clients/fedprox.py`).

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith 2020, arXiv:1812.06127.  Differs from the paper: clients are weighted by
`num_examples` in the mean (the paper samples them so and averages uniformly: uniform sampler, weights=uniform).
Neutral: the client's mu=0 is FedAvg; to the bit in a loop, to 1e-6 where the stacked plan fuses FedAvg's plain descent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl.method.strategy import FedAvgEquivalent
from fl.registry import register
from strategies.fedavg import FedAvg


@register("strategy", "fedprox")
@dataclass(frozen=True, kw_only=True)
class FedProx(FedAvg):
    client: ClassVar[str] = "fedprox"
    fedavg_equivalent: ClassVar[FedAvgEquivalent] = FedAvgEquivalent(
        strategy={"lr": 1.0, "weights": "examples"}, client={"mu": 0.0}, bits=False
    )
