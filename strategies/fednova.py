"""FedNova: normalised averaging, so that clients that take more steps do not pull harder.

    model <- model + lr * (sum_i p_i |a_i|) * sum_i p_i delta_i / |a_i|             p_i = n_i / sum n  (weights=uniform: 1 / m)

Wang, Liu, Liang, Joshi, Poor 2020, arXiv:2007.07481.  delta_i is what client i moved by, |a_i| its number of effective
steps (`clients/fednova.py`); it sends delta_i / |a_i| and |a_i|.  The first factor is tau_eff: made of |a_i|, it averages
clients of equal steps as FedAvg does, whatever momentum or mu.
Differs from the authors' program: with mu > 0 that one's tau_eff counts plain steps; its server momentum is left out.
Neutral: none among its settings; it is FedAvg where all clients take as many steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fl.method.reduction import WeightedMean
from fl.method.strategy import Strategy
from fl.registry import register


@register("strategy", "fednova")
@dataclass(frozen=True, kw_only=True)
class FedNova(Strategy):
    lr: float = 1.0
    weights: Literal["examples", "uniform"] = "examples"

    client: ClassVar[str] = "fednova"

    def reduction(self, state, ctx):
        return {"model": WeightedMean(self.weights), "steps": WeightedMean(self.weights)}

    def step(self, state, reduced, ctx):
        steps = float(reduced["steps"])
        return state + self.lr * steps * reduced["model"], {"effective_steps": steps}
