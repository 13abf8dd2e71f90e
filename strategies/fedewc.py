"""Elastic weight consolidation with federated averaging (FedEWC): weights that old tasks need keep near their values.

    clients minimise  L_i(w) + lam/2 * sum_t sum_j F_tj (w_j - w*_tj)^2;    the server averages as FedAvg
    after task t:  w*_t <- w;  F_t <- sum_i n_i F_i / sum n_i
                   over the clients of the last round (`clients/fedewc.py`, work fisher)
    anchors last:   F <- gamma F + F_t,  one anchor, the last model           anchors every:  each task's own model

Kirkpatrick et al. 2017, arXiv:1612.00796 (every); Schwarz et al. 2018, arXiv:1805.06370 (last, online EWC, gamma).
The sum over tasks is one quadratic in w, so two trees suffice, F and b = sum_t F_t w*_t: its gradient is lam (F w -
b). They go down once per task and client, 2 P floats; the last round of a task costs P more down (the new model) and
P up (F_i).  If no client answers in the last round of a task, the cohort is asked for F_i; if it does not answer
either, the next clients that answer are asked, about the data that they have then.
Differs from the papers: F is the empirical Fisher, of the samples' own labels.  lam times the largest F times the
learning rate must stay below 2, or local training diverges.
Equals FedAvg: lam=0, equal bits in the loop.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from fl import (
    Broadcast,
    Exchange,
    FedAvgEquivalent,
    OptimiserState,
    Params,
    Plain,
    RoundGenerator,
    ServerContext,
    ServerOptimiser,
    Static,
    Strategy,
    WeightedMean,
    checks,
    register,
    zeros_like,
)


@dataclass(frozen=True)
class State:
    """The model and the quadratic penalty of the tasks so far: F (zeros in the first task), b, and their number.

    Two tasks count as one if no client answered at the end of the first.
    """

    model: Params
    fisher: Params
    pull: Params
    tasks: int
    optimiser: OptimiserState = OptimiserState()


def consolidated(state: State, fisher: Params, gamma: float, anchors: str) -> State:
    """Return the state after a task with Fisher information `fisher`; its last model is the state's."""
    total = gamma * state.fisher + fisher
    pull = total * state.model if anchors == "last" else gamma * state.pull + fisher * state.model
    return replace(state, fisher=total, pull=pull, tasks=state.tasks + 1)


@register("strategy", "fedewc")
@dataclass(frozen=True, kw_only=True)
class FedEWC(Strategy):
    """FedAvg with a quadratic penalty on weights that old tasks need.

    Args:
        lam: weight of the penalty, at least 0. 0 is FedAvg.
        gamma: factor of the old Fisher information at the end of each task, in [0, 1]. 1 forgets nothing.
        anchors: `last` holds weights near the last task's model, `every` near each task's own model.
        lr: factor of each step of the server. 1 is FedAvg.
        weights: weights of the mean: `examples` (number of training samples) or `uniform`.
        server_optimiser: how the server moves along the mean update. `plain` is FedAvg.
    """

    lam: float = 10.0
    gamma: float = 1.0
    anchors: Literal["last", "every"] = "last"
    lr: float = 1.0
    weights: Literal["examples", "uniform"] = "examples"
    server_optimiser: ServerOptimiser = Plain()

    client: ClassVar[str] = "fedewc"
    later_metrics: ClassVar[tuple[str, ...]] = ("fisher_max",)
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(strategy={"lam": 0.0}, bits=False)

    def __post_init__(self) -> None:
        checks.not_negative(lam=self.lam, hint="0 is FedAvg")
        checks.within("[0, 1]", gamma=self.gamma, hint="at 1 old tasks are never forgotten")
        checks.one_of(("last", "every"), anchors=self.anchors)

    def init(self, model: Params, ctx: ServerContext) -> State:
        return State(model, zeros_like(model), zeros_like(model), 0, self.server_optimiser.init(model))

    def broadcast(self, state: State, ctx: ServerContext) -> Broadcast:
        past = {"past": Static(state.tasks, {"fisher": state.fisher, "pull": state.pull})} if state.tasks else {}
        return Broadcast(shared={"model": state.model}, static=past, config={"lam": self.lam})

    def reduction(self, state: State, ctx: ServerContext) -> WeightedMean:
        return WeightedMean(self.weights)

    def round(self, state: State, ctx: ServerContext) -> RoundGenerator:
        outcome = yield Exchange(self.broadcast(state, ctx), self.reduction(state, ctx))
        clients = ctx.cohort
        if outcome.value is not None:
            model, optimiser = self.server_optimiser.step(state.model, outcome.value, state.optimiser, self.lr)
            state, clients = replace(state, model=model, optimiser=optimiser), outcome.clients
        due = ctx.period_ends or state.tasks < ctx.period  # nobody has answered since the last task ended
        if not due or not self.lam or not len(clients):
            return state, {}
        answer = yield Exchange(state.model, {"fisher": WeightedMean()}, work="fisher", cohort=clients)
        if answer.value is None:
            return state, {}
        fisher = answer.value["fisher"]
        largest = max(float(fisher[name].max()) for name in fisher)
        state = replace(consolidated(state, fisher, self.gamma, self.anchors), tasks=ctx.period + ctx.period_ends)
        return state, {"fisher_max": largest}
