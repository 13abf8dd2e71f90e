"""FedDyn: dynamic regularisation, so that the clients' optima agree with the global optimum.

    h <- h - alpha/m * sum_{k in P} (w_k - w);    w <- mean_{k in P} w_k - h / alpha        (P answered, of m clients)

Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama 2021, arXiv:2111.04263, Algorithm 1.  The mean is uniform as
in the paper.  The clients use the same `alpha` (`clients/feddyn.py`); it travels as configuration.
Equals FedAvg: no setting.  As alpha goes to 0 the clients' part becomes FedAvg's, but the server's h / alpha stays as
large as an update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl import Broadcast, Exchange, Params, RoundGenerator, ServerContext, Strategy, Sum, checks, register, zeros_like


@dataclass(frozen=True)
class State:
    """The model, and h: the mean of the g_k of all m clients (zeros before round 0)."""

    model: Params
    h: Params


@register("strategy", "feddyn")
@dataclass(frozen=True, kw_only=True)
class FedDyn(Strategy):
    """FedAvg with dynamic regularisation.

    Args:
        alpha: strength of the regularisation, positive.
    """

    alpha: float = 0.01

    client: ClassVar[str] = "feddyn"

    def __post_init__(self) -> None:
        checks.positive(alpha=self.alpha, hint="the server divides by it; without regularisation use fedavg")

    def init(self, model: Params, ctx: ServerContext) -> State:
        return State(model, zeros_like(model))

    def broadcast(self, state: State, ctx: ServerContext) -> Broadcast:
        return Broadcast(shared={"model": state.model}, config={"alpha": self.alpha})

    def round(self, state: State, ctx: ServerContext) -> RoundGenerator:
        # the full form: the mean is the sum divided by the number of answers, known only after the exchange
        outcome = yield Exchange(self.broadcast(state, ctx), Sum())
        if outcome.value is None:
            return state, {}
        total = outcome.value
        h = state.h - (self.alpha / ctx.population) * total
        return State(state.model + total / len(outcome.clients) - h / self.alpha, h), {}
