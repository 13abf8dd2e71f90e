"""FedHyper: rates that grow if successive changes agree, and fall if they oppose each other.    D: mean change

    I     = <D_t, v_{t-1}>,    v_t = D_t + momentum v_{t-1},    v_{-1} = 0
    g     alpha_0 = start,     alpha_t = clip(alpha_{t-1} + I, low, high);    model <- model + alpha_t v_t
    sl    beta_0 = start,      beta_{t+1} = clip(beta_t + I, low, high);      model <- model + v_t,  clients: lr beta_t
    cl    model <- model + v_t;    clients adapt their rate in each step, and receive v_{t-1} (clients/fedhyper.py)

Wang, Wang, Li 2024 (ICLR), arXiv:2310.03156.  The mean is uniform.  g+cl and sl+cl do both ("full").  g sends what
FedAvg sends; sl sends one number more down; cl sends the model and v_{t-1}, twice FedAvg's bytes down.
I is a product of two changes, so its size is that of |change|^2: with small local rates nothing happens, with large
ones the rate jumps to a bound.  The metric `inner` is I.
cl multiplies the rate, as the authors' program does.
Differs from the program: there, sl has no effect, because each round resets the clients' rates; beta is not clipped;
momentum is subtracted where alpha is below 1.
Equals FedAvg: start=low=high=1 is FedAvg with uniform weights, equal bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from fl import (
    SGD,
    Broadcast,
    FedAvgEquivalent,
    LRSchedule,
    Metrics,
    Params,
    ServerContext,
    Strategy,
    WeightedMean,
    checks,
    dot,
    register,
    zeros_like,
)

MODES = ("g", "sl", "cl", "g+cl", "sl+cl")


@dataclass(frozen=True)
class State:
    """The model, the server's last direction v (zeros before round 0), and alpha or beta."""

    model: Params
    direction: Params
    rate: float


def adapted(rate: float, inner: float, low: float, high: float) -> float:
    """Return the next alpha or beta.

    >>> adapted(1.0, 0.5, 0.2, 5.0), adapted(1.0, -2.0, 0.2, 5.0)
    (1.5, 0.2)
    """
    return min(max(rate + inner, low), high)


@register("strategy", "fedhyper")
@dataclass(frozen=True, kw_only=True)
class FedHyper(Strategy):
    """FedAvg with a rate of the server (g), of each round's clients (sl) or of each local step (cl) that adapts.

    Args:
        mode: which rate adapts: g, sl, cl, g+cl or sl+cl.
        start: alpha or beta in round 0, between `low` and `high`. The paper's default is 1.
        low: smallest alpha or beta, above 0.
        high: largest alpha or beta, at least `low`.
        momentum: weight of the last direction, in [0, 1). The authors recommend 0.9 with low 0.8.
        epsilon: weight of the server's last direction in cl, at least 0; it is divided by the number of clients of the
            round.
        weights: weights of the mean: `uniform` (the paper) or `examples` (number of training samples).
    """

    mode: Literal["g", "sl", "cl", "g+cl", "sl+cl"] = "g"
    start: float = 1.0
    low: float = 0.2
    high: float = 5.0
    momentum: float = 0.0
    epsilon: float = 0.1
    weights: Literal["uniform", "examples"] = "uniform"

    client: ClassVar[str] = "fedhyper"
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(
        strategy={"start": 1.0, "low": 1.0, "high": 1.0}, fedavg={"weights": "uniform"}
    )

    def __post_init__(self) -> None:
        checks.one_of(MODES, mode=self.mode)
        checks.one_of(("uniform", "examples"), weights=self.weights)
        checks.positive(low=self.low)
        checks.at_least(self.low, high=self.high, hint="it is the largest rate, `low` the smallest")
        checks.within(f"[{self.low}, {self.high}]", start=self.start, hint="these are `low` and `high`")
        checks.within("[0, 1)", momentum=self.momentum, hint="at 1 the direction never decays")
        checks.not_negative(epsilon=self.epsilon)

    @property
    def scales_clients(self) -> bool:
        """Whether the server sets the clients' learning rate (sl)."""
        return self.mode.startswith("sl")

    @property
    def adapts_steps(self) -> bool:
        """Whether clients adapt their rate in each step (cl)."""
        return self.mode.endswith("cl")

    def check_client(self, client: Any) -> None:
        if self.mode == "g":
            return
        if not hasattr(client, "lr_low"):  # of clients/fedhyper.py
            raise ValueError(f"name: mode: {self.mode} needs the client {self.client!r}; use it, or mode: g")
        by_step = isinstance(client.lr, LRSchedule) and client.lr.by == "step"
        if self.scales_clients and by_step:
            raise ValueError("lr: a schedule by step has no single rate that the server could scale; use by: round")
        if self.scales_clients and not isinstance(client.lr, LRSchedule):
            hint = "these are lr_low and lr_high, the bounds of mode: sl"
            checks.within(f"[{client.lr_low}, {client.lr_high}]", lr=client.lr, hint=hint)
        if self.adapts_steps and client.optimiser != SGD():
            raise ValueError(
                "optimiser: mode: cl scales the rate of plain SGD; leave out the optimiser, momentum and weight decay"
            )
        if self.adapts_steps and client.rates:
            raise ValueError("rates: mode: cl scales one rate; leave `rates` out")

    def init(self, model: Params, ctx: ServerContext) -> State:
        return State(model, zeros_like(model), self.start)

    def broadcast(self, state: State, ctx: ServerContext) -> Broadcast:
        shared, config = {"model": state.model}, {}
        if self.scales_clients:
            config["beta"] = state.rate
        if self.adapts_steps:
            shared["direction"], config["epsilon"] = state.direction, self.epsilon / max(len(ctx.cohort), 1)
        return Broadcast(shared=shared, config=config)

    def reduction(self, state: State, ctx: ServerContext) -> WeightedMean:
        return WeightedMean(self.weights)

    def step(self, state: State, reduced: Params, ctx: ServerContext) -> tuple[State, Metrics]:
        inner = float(dot(reduced, state.direction, torch.float64))
        direction = reduced + self.momentum * state.direction if self.momentum else reduced
        if self.mode == "cl":
            return State(state.model + direction, direction, state.rate), {"inner": inner}
        rate = adapted(state.rate, inner, self.low, self.high)
        if self.scales_clients:
            return State(state.model + direction, direction, rate), {"beta": rate, "inner": inner}
        return State(state.model + rate * direction, direction, rate), {"alpha": rate, "inner": inner}
