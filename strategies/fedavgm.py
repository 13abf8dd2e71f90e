"""Server momentum (FedAvgM).    velocity <- beta * velocity + mean(update);   model <- model + lr * velocity

Hsu, Qi, Brown 2019, arXiv:1909.06335.  The mean is weighted by `num_examples`; velocity starts at zero, so round 0 moves.
Differs from the paper: `lr` is ours; the Nesterov variant is left out.  Neutral: beta=0, lr=1 is FedAvg, to the bit.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

from fl.method.strategy import FedAvgEquivalent, Strategy
from fl.registry import register
from fl.tensors.params import Params, zeros_like


@dataclass(frozen=True)
class State:
    model: Params
    velocity: Params  # same names as model; zeros before round 0


@register("strategy", "fedavgm")
@dataclass(frozen=True, kw_only=True)
class FedAvgM(Strategy):
    lr: float = 1.0
    beta: float = 0.9

    fedavg_equivalent: ClassVar[FedAvgEquivalent] = FedAvgEquivalent(strategy={"beta": 0.0, "lr": 1.0})

    def __post_init__(self):
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta: {self.beta} is not in [0, 1); at 1 the velocity never decays")
        if self.beta == 0:
            logging.getLogger(__name__).warning("beta=0: this is fedavg with lr=%g", self.lr)

    def init(self, model, ctx):
        return State(model, zeros_like(model))

    def step(self, state, mean, ctx):
        velocity = self.beta * state.velocity + mean
        return State(state.model + self.lr * velocity, velocity), {}
