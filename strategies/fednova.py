"""FedNova: normalised averaging, so that clients that take more steps do not pull harder.

    model <- model + lr * (sum_i p_i |a_i|) * sum_i p_i delta_i / |a_i|      p_i = n_i / sum n  (weights=uniform: 1 / m)

delta_i is the update of client i, |a_i| its number of effective steps; `clients/fednova.py` sends delta_i / |a_i| and
|a_i|.  The first factor is tau_eff.
Wang, Liu, Liang, Joshi, Poor 2020, arXiv:2007.07481.  If all clients take equally many steps this is FedAvg, whatever
momentum or mu.
Differs from the authors' program: with mu > 0 its tau_eff counts plain steps.  Its server momentum is
`server_optimiser: {name: momentum}`.
Equals FedAvg: no setting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fl import Metrics, Params, Plain, Reduction, ServerContext, ServerOptimiser, Strategy, WeightedMean, register

from .fedavg import State


@register("strategy", "fednova")
@dataclass(frozen=True, kw_only=True)
class FedNova(Strategy):
    """FedAvg of normalised updates.

    Args:
        lr: factor of the normalised mean update. 1 is the paper's.
        weights: weights p_i: `examples` (number of training samples, the paper) or `uniform`.
        server_optimiser: how the server moves along the normalised mean update. `plain` is the paper's.
    """

    lr: float = 1.0
    weights: Literal["examples", "uniform"] = "examples"
    server_optimiser: ServerOptimiser = Plain()

    client: ClassVar[str] = "fednova"

    def init(self, model: Params, ctx: ServerContext) -> State:
        return State(model, self.server_optimiser.init(model))

    def reduction(self, state: State, ctx: ServerContext) -> dict[str, Reduction]:
        return {"model": WeightedMean(self.weights), "steps": WeightedMean(self.weights)}

    def step(self, state: State, reduced: dict[str, Any], ctx: ServerContext) -> tuple[State, Metrics]:
        steps = float(reduced["steps"])
        update = self.lr * steps * reduced["model"]
        return State(*self.server_optimiser.step(state.model, update, state.optimiser)), {"effective_steps": steps}
