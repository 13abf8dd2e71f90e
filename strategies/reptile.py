"""Reptile: learn an initialisation from which a client adapts with a few samples.

    phi <- phi + alpha_t * mean_i (phi_i - phi),    alpha_t = alpha (1 - t / T)        (schedule constant: alpha)

Nichol, Achiam, Schulman 2018, arXiv:1803.02999; phi_i is the result of clients/reptile.py on the client's own task.
One client per round is the serial form (cohort: {size: 1}), more are the batched form; their mean is uniform.
Equals FedAvg: alpha=1, schedule=constant is FedAvg with uniform weights; alpha is then FedAvg's lr.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from fl import FedAvgEquivalent, LRSchedule, Metrics, Params, ServerContext, Strategy, WeightedMean, checks, register


@register("strategy", "reptile")
@dataclass(frozen=True, kw_only=True)
class Reptile(Strategy):
    """Move the initialisation towards the clients' adapted models.

    Args:
        alpha: step of round 0, in [0, 1]. 1 with a constant schedule is FedAvg.
        schedule: `linear` falls to 0 at the end of the run, `constant` stays at alpha.
    """

    alpha: float = 1.0
    schedule: Literal["linear", "constant"] = "linear"

    client: ClassVar[str] = "reptile"
    # equal bits only if both train in the loop
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(
        strategy={"alpha": 1.0, "schedule": "constant"}, fedavg={"weights": "uniform"}, bits=False
    )

    def __post_init__(self) -> None:
        checks.within("[0, 1]", alpha=self.alpha, hint="at 1 the server takes the mean of the clients' models")

    def rate(self, round_: int, rounds: int) -> float:
        """Return alpha_t."""
        return LRSchedule(start=self.alpha, schedule=self.schedule).at(round_, rounds)

    def reduction(self, state: Params, ctx: ServerContext) -> WeightedMean:
        return WeightedMean("uniform")

    def step(self, state: Params, reduced: Any, ctx: ServerContext) -> tuple[Params, Metrics]:
        rate = self.rate(ctx.round, ctx.rounds)
        return state + rate * reduced, {"alpha": rate}
