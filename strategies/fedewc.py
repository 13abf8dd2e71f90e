"""Elastic weight consolidation with federated averaging (FedEWC): weights that old tasks need are held where those left them.

    clients minimise  L_i(w) + lam/2 * sum_t sum_j F_tj (w_j - w*_tj)^2;    the server averages as FedAvg
    after task t:  w*_t <- w;  F_t <- sum_i n_i F_i / sum n_i, of the clients of the last round (`clients/fedewc.py`, work fisher)
    anchors last:   F <- gamma F + F_t,  one anchor, the last model           anchors every:  each task's own model

Kirkpatrick et al. 2017, arXiv:1612.00796 (every); Schwarz et al. 2018, arXiv:1805.06370 (last, online EWC, gamma). The sum over tasks
is one quadratic in w, so that two trees suffice, F and b = sum_t F_t w*_t: its gradient is lam (F w - b). They go down once per task
and client, 2 P floats; the last round of a task costs P more down (the new model) and P up (F_i).
Differs from the papers: F is the empirical Fisher, of the samples' own labels. lam times the largest F times the learning rate must
stay below 2, or local training diverges.  Neutral: lam=0 is FedAvg, to the bit in a loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fl.method.messages import Broadcast, Static
from fl.method.reduction import WeightedMean
from fl.method.requests import Exchange
from fl.method.strategy import FedAvgEquivalent, Strategy
from fl.registry import register
from fl.tensors.params import Params, zeros_like


@dataclass(frozen=True)
class State:
    model: Params
    fisher: Params  # F; zeros in the first task
    pull: Params  # b = sum_t F_t w*_t
    tasks: int  # ended so far


def consolidated(state: State, fisher: Params, gamma: float, anchors: str) -> State:
    """The state after a task whose Fisher is `fisher` and whose last model is the state's."""
    total = gamma * state.fisher + fisher
    pull = total * state.model if anchors == "last" else gamma * state.pull + fisher * state.model
    return State(state.model, total, pull, state.tasks + 1)


@register("strategy", "fedewc")
@dataclass(frozen=True, kw_only=True)
class FedEWC(Strategy):
    lam: float = 10.0
    gamma: float = 1.0
    anchors: Literal["last", "every"] = "last"
    lr: float = 1.0
    weights: Literal["examples", "uniform"] = "examples"

    client: ClassVar[str] = "fedewc"
    fedavg_equivalent: ClassVar[FedAvgEquivalent] = FedAvgEquivalent(strategy={"lam": 0.0}, bits=False)

    def __post_init__(self):
        if self.lam < 0:
            raise ValueError(f"lam: {self.lam} is negative; 0 is FedAvg")
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma: {self.gamma} is not in [0, 1]; at 1 old tasks are not let go of")
        if self.anchors not in ("last", "every"):
            raise ValueError(f"anchors: {self.anchors!r} is not one of ['last', 'every']")

    def init(self, model, ctx):
        return State(model, zeros_like(model), zeros_like(model), 0)

    def broadcast(self, state, ctx):
        past = {"past": Static(state.tasks, {"fisher": state.fisher, "pull": state.pull})} if state.tasks else {}
        return Broadcast(shared={"model": state.model}, static=past, config={"lam": self.lam})

    def reduction(self, state, ctx):
        return WeightedMean(self.weights)

    def round(self, state, ctx):
        outcome = yield Exchange(self.broadcast(state, ctx), self.reduction(state, ctx))
        if outcome.value is None:
            return state, {}
        state = State(state.model + self.lr * outcome.value, state.fisher, state.pull, state.tasks)
        if not ctx.stage_ends or not self.lam:
            return state, {}
        asked = yield Exchange(state.model, {"fisher": WeightedMean()}, work="fisher", cohort=outcome.clients)
        if asked.value is None:
            return state, {}
        fisher = asked.value["fisher"]
        largest = max(float(fisher[name].max()) for name in fisher)
        return consolidated(state, fisher, self.gamma, self.anchors), {"fisher_max": largest}
