"""FedCurv: weights that matter to other clients stay near the values that those clients found.

    clients minimise  L_i(w) + lam sum_{j != i} (w - w_j)^T F_j (w - w_j),   j in the cohort of the last round
    server:  model <- mean of the models w_j;   sums  F = sum_j F_j,  b = sum_j F_j w_j  go down with it

F_j is the diagonal Fisher information of client j at w_j (`clients/fedcurv.py`). A client subtracts its own part from
the sums, so nobody learns another client's part.
Shoham, Avidor, Keren, Israel, Benditkis, Mor-Yosef, Zeitak 2019, arXiv:1910.07796.
Bytes: 3 P numbers down and 3 P up in each round; in round 0 the sums are zeros. If no client answers in a round, the
sums stay.
Differs from the paper: F is the empirical Fisher, of the samples' own labels, a mean over samples.  Twice lam times
the largest F times the learning rate must stay below 2, or local training diverges.
Equals FedAvg: lam=0, but for the bytes.  One client alone: any lam.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from fl import (
    Broadcast,
    FedAvgEquivalent,
    Metrics,
    OptimiserState,
    Params,
    Plain,
    Reduction,
    ServerContext,
    ServerOptimiser,
    Strategy,
    Sum,
    WeightedMean,
    checks,
    register,
    zeros_like,
)


@dataclass(frozen=True)
class State:
    """The model, the sums F and b, and the round that they come from (-1: none yet)."""

    model: Params
    fisher: Params
    pull: Params
    round: int = -1
    optimiser: OptimiserState = OptimiserState()


@register("strategy", "fedcurv")
@dataclass(frozen=True, kw_only=True)
class FedCurv(Strategy):
    """FedAvg that also sums the clients' Fisher information; `client.lam` is the weight of the penalty.

    Args:
        lr: factor of each step of the server. 1 is FedAvg.
        weights: weights of the mean of the models: `examples` (number of training samples) or `uniform`. The Fisher
            information is summed without weights.
        server_optimiser: how the server moves along the mean update. `plain` is FedAvg.
    """

    lr: float = 1.0
    weights: Literal["examples", "uniform"] = "examples"
    server_optimiser: ServerOptimiser = Plain()

    client: ClassVar[str] = "fedcurv"
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(client={"lam": 0.0}, bits=False)

    def __post_init__(self) -> None:
        checks.one_of(("examples", "uniform"), weights=self.weights)

    def init(self, model: Params, ctx: ServerContext) -> State:
        return State(model, zeros_like(model), zeros_like(model), optimiser=self.server_optimiser.init(model))

    def broadcast(self, state: State, ctx: ServerContext) -> Broadcast:
        shared = {"model": state.model, "fisher": state.fisher, "pull": state.pull}
        return Broadcast(shared=shared, config={"sums_of_round": state.round})

    def reduction(self, state: State, ctx: ServerContext) -> dict[str, Reduction]:
        return {"model": WeightedMean(self.weights), "fisher": Sum(), "pull": Sum()}

    def step(self, state: State, reduced: dict[str, Any], ctx: ServerContext) -> tuple[State, Metrics]:
        model, optimiser = self.server_optimiser.step(state.model, reduced["model"], state.optimiser, self.lr)
        state = replace(state, model=model, optimiser=optimiser, round=ctx.round)
        return replace(state, fisher=reduced["fisher"], pull=reduced["pull"]), {}
