"""FedExP: the server steps farther the more the clients' updates disagree.

    model <- model + eta d,     d = mean_i delta_i,     eta = max(1, sum_i |delta_i|^2 / (2 M (|d|^2 + epsilon)))

Jhunjhunwala, Wang, Joshi 2023, arXiv:2301.09604, Algorithm 1.  M clients answered; the means are uniform as in the paper,
weights=examples weighs both.  The server itself measures |delta_i|^2, so clients send what FedAvg's do.
average: what is evaluated and saved is the mean of the last two iterates, as the paper suggests for the end of a run;
training goes on from the last one.
Neutral: weights=examples and an epsilon beyond all measure keep eta = 1, so it is FedAvg, to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fl.method.reduction import WeightedMean
from fl.method.strategy import FedAvgEquivalent, Strategy
from fl.registry import register
from fl.tensors.params import Params, dot


@dataclass(frozen=True)
class State:
    latest: Params
    before: Params  # the iterate before it


@dataclass(frozen=True)
class MeanAndSquare(WeightedMean):
    """(mean update, mean of the squared norms of the updates), of the same weights."""

    def lift(self, value, meta):
        return super().lift((value, dot(value, value)), meta)


def extrapolation(mean_square: float, square_of_mean: float, epsilon: float) -> float:
    """eta, from mean_i |delta_i|^2 and |mean_i delta_i|^2."""
    denominator = 2 * (square_of_mean + epsilon)
    return max(1.0, mean_square / denominator) if denominator > 0 else 1.0


@register("strategy", "fedexp")
@dataclass(frozen=True, kw_only=True)
class FedExP(Strategy):
    epsilon: float = 1e-3
    weights: Literal["examples", "uniform"] = "uniform"
    average: bool = False

    fedavg_equivalent: ClassVar[FedAvgEquivalent] = FedAvgEquivalent(strategy={"epsilon": 1e30, "weights": "examples"})

    def __post_init__(self):
        if self.epsilon < 0:
            raise ValueError(f"epsilon: {self.epsilon} is negative; 0 leaves the extrapolation unbounded")

    def init(self, model, ctx):
        return State(model, model)

    def broadcast(self, state, ctx):
        return state.latest

    def model(self, state):
        return 0.5 * (state.latest + state.before) if self.average else state.latest

    def reduction(self, state, ctx):
        return MeanAndSquare(self.weights)

    def step(self, state, reduced, ctx):
        mean, square = reduced
        eta = extrapolation(float(square), float(dot(mean, mean)), self.epsilon)
        return State(state.latest + eta * mean, state.latest), {"server_lr": eta}
