"""Reptile: an initialisation from which a client adapts with a few samples.

    phi <- phi + alpha_t * mean_i (phi_i - phi),    alpha_t = alpha (1 - t / T)        (schedule: constant, alpha)

Nichol, Achiam, Schulman 2018, arXiv:1803.02999; phi_i is what clients/reptile.py trains to on its own task. One client a round is
the serial form (cohort: {size: 1}), more are the batched one; their mean is uniform.
Neutral: alpha=1, schedule=constant is FedAvg with uniform weights, alpha is then FedAvg's lr.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fl.method.optimiser import LRSchedule
from fl.method.reduction import WeightedMean
from fl.method.strategy import FedAvgEquivalent, Strategy
from fl.registry import register


@register("strategy", "reptile")
@dataclass(frozen=True, kw_only=True)
class Reptile(Strategy):
    alpha: float = 1.0
    schedule: Literal["linear", "constant"] = "linear"

    client: ClassVar[str] = "reptile"
    # to the bit only where both train in the loop
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(
        strategy={"alpha": 1.0, "schedule": "constant"}, fedavg={"weights": "uniform"}, bits=False
    )

    def __post_init__(self):
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha: {self.alpha} is not in [0, 1]; at 1 the server takes what comes up")

    def rate(self, round_: int, rounds: int) -> float:
        """alpha_t"""
        return LRSchedule(start=self.alpha, schedule=self.schedule).at(round_, rounds)

    def reduction(self, state, ctx):
        return WeightedMean("uniform")

    def step(self, state, mean, ctx):
        rate = self.rate(ctx.round, ctx.rounds)
        return state + rate * mean, {"alpha": rate}
