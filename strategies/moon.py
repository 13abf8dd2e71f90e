"""MOON: the server step of FedAvg over clients that contrast representations (`clients/moon.py`).

Li, He, Song 2021, arXiv:2103.16257.  The mean is weighted by `num_examples`, as in the paper.
Neutral: the client's mu=0 is FedAvg, to 1e-6 (MOON trains in the loop, FedAvg wherever it is fastest).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl.method.strategy import FedAvgEquivalent
from fl.registry import register
from strategies.fedavg import FedAvg


@register("strategy", "moon")
@dataclass(frozen=True, kw_only=True)
class Moon(FedAvg):
    client: ClassVar[str] = "moon"
    fedavg_equivalent: ClassVar[FedAvgEquivalent] = FedAvgEquivalent(
        strategy={"lr": 1.0, "weights": "examples"}, client={"mu": 0.0}, bits=False
    )
