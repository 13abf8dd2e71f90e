"""FedExP: the server steps farther if the clients' updates disagree more.

    model <- model + eta d,     d = mean_i delta_i,     eta = max(1, sum_i |delta_i|^2 / (2 M (|d|^2 + epsilon)))

Jhunjhunwala, Wang, Joshi 2023, arXiv:2301.09604, Algorithm 1.  M clients answered; the means are uniform as in the
paper (weights=examples weighs both).  The server measures |delta_i|^2, so clients send the same as in FedAvg.
average: the mean of the last two iterates is evaluated and saved, as the paper suggests for the end of a run; training
goes on from the last iterate.
Equals FedAvg: weights=examples and a huge epsilon keep eta = 1; equal bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from fl import (
    FedAvgEquivalent,
    Meta,
    Metrics,
    Params,
    ServerContext,
    Strategy,
    Tree,
    WeightedMean,
    checks,
    dot,
    register,
)


@dataclass(frozen=True)
class State:
    """The last two iterates."""

    latest: Params
    previous: Params


@dataclass(frozen=True)
class MeanAndSquare(WeightedMean):
    """(mean update, mean of the squared norms of the updates), with the same weights."""

    def lift(self, value: Params, meta: Meta) -> tuple[Tree, Tensor]:
        return super().lift((value, dot(value, value)), meta)


def extrapolation(mean_square: float, square_of_mean: float, epsilon: float) -> float:
    """Return eta, from mean_i |delta_i|^2 and |mean_i delta_i|^2.

    >>> extrapolation(8.0, 1.0, 0.0), extrapolation(1.0, 1.0, 0.0)
    (4.0, 1.0)
    """
    denominator = 2 * (square_of_mean + epsilon)
    return max(1.0, mean_square / denominator) if denominator > 0 else 1.0


@register("strategy", "fedexp")
@dataclass(frozen=True, kw_only=True)
class FedExP(Strategy):
    """FedAvg with an extrapolated step.

    Args:
        epsilon: bounds the extrapolation, at least 0. A huge value (1e30) is FedAvg; 0 leaves it unbounded.
        weights: weights of both means: `uniform` (the paper) or `examples` (number of training samples).
        average: evaluate and save the mean of the last two iterates.
    """

    epsilon: float = 1e-3
    weights: Literal["examples", "uniform"] = "uniform"
    average: bool = False

    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(
        strategy={"epsilon": 1e30, "weights": "examples"}
    )

    def __post_init__(self) -> None:
        checks.not_negative(epsilon=self.epsilon, hint="0 leaves the extrapolation unbounded")

    def init(self, model: Params, ctx: ServerContext) -> State:
        return State(model, model)

    def broadcast(self, state: State, ctx: ServerContext) -> Params:
        return state.latest

    def model(self, state: State) -> Params:
        return 0.5 * (state.latest + state.previous) if self.average else state.latest

    def reduction(self, state: State, ctx: ServerContext) -> MeanAndSquare:
        return MeanAndSquare(self.weights)

    def step(self, state: State, reduced: tuple[Params, Tensor], ctx: ServerContext) -> tuple[State, Metrics]:
        mean, square = reduced
        eta = extrapolation(float(square), float(dot(mean, mean)), self.epsilon)
        return State(state.latest + eta * mean, state.latest), {"server_lr": eta}
