"""Federated averaging.    model <- model + lr * mean(local - model)

McMahan, Moore, Ramage, Hampson, Agüera y Arcas 2017, arXiv:1602.05629.  The mean is weighted by `num_examples` as in the
paper, or uniform.  Differs from the paper: `lr` is ours (lr=1 is the paper's rule).  Neutral: lr=1, weights=examples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fl.method.reduction import WeightedMean
from fl.method.strategy import FedAvgEquivalent, Strategy
from fl.registry import register


@register("strategy", "fedavg")
@dataclass(frozen=True, kw_only=True)
class FedAvg(Strategy):
    lr: float = 1.0
    weights: Literal["examples", "uniform"] = "examples"

    fedavg_equivalent: ClassVar[FedAvgEquivalent] = FedAvgEquivalent(strategy={"lr": 1.0, "weights": "examples"})

    def averages(self):
        return 0 < self.lr <= 1

    def reduction(self, state, ctx):
        return WeightedMean(self.weights)

    def step(self, state, mean, ctx):
        return state + self.lr * mean, {}
