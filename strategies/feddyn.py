"""FedDyn: dynamic regularisation, so that clients' optima agree with the global one.

    h <- h - alpha/m * sum_{k in P} (w_k - w);    w <- mean_{k in P} w_k - h / alpha        (P answered, of m clients)

Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama 2021, arXiv:2111.04263, Algorithm 1.  The mean is uniform as in the
paper.  `alpha` is the clients' too (`clients/feddyn.py`) and travels as config, so that there is one of it.
Neutral: none; as alpha goes to 0 the clients' part is FedAvg's, but the server's h / alpha stays of the size of an update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl.method.messages import Broadcast
from fl.method.reduction import Sum
from fl.method.requests import Exchange
from fl.method.strategy import Strategy
from fl.registry import register
from fl.tensors.params import Params, zeros_like


@dataclass(frozen=True)
class State:
    model: Params
    h: Params  # mean of the g_k of all m clients; zeros before round 0


@register("strategy", "feddyn")
@dataclass(frozen=True, kw_only=True)
class FedDyn(Strategy):
    alpha: float = 0.01

    client: ClassVar[str] = "feddyn"

    def __post_init__(self):
        if self.alpha <= 0:
            raise ValueError(
                f"alpha: {self.alpha} is not positive, and the server divides by it; without it use fedavg"
            )

    def init(self, model, ctx):
        return State(model, zeros_like(model))

    def broadcast(self, state, ctx):
        return Broadcast(shared={"model": state.model}, config={"alpha": self.alpha})

    def round(self, state, ctx):
        # the full form: sum and mean differ by how many answered, which only the outcome knows
        outcome = yield Exchange(self.broadcast(state, ctx), Sum())
        if outcome.value is None:
            return state, {}
        total = outcome.value
        h = state.h - (self.alpha / ctx.population) * total
        return State(state.model + total / len(outcome.clients) - h / self.alpha, h), {}
