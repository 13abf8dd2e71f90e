"""FedAT: clients of similar speed form a tier; each tier averages at its own pace, and slow tiers count more.

    w_m <- mean_{k in the tier's cohort} w_k                            m: the tier whose round ends, 0 the fastest of M
    model <- sum_m (T_{M-1-m} / T) w_m                                    T_m: rounds of tier m so far, T their sum

Chai, Chen, Zhao, Cheng, Rangwala 2021, arXiv:2010.05958, Algorithm 1 and the equation of its weighted aggregation: a
tier's weight is the count of the tier mirrored in the order of speed.  The tier's mean is weighted by `num_examples`.
A tier that has not reported yet counts with the initial model. Until the slowest tier has reported, the fastest has
weight 0, as in the equation. M is set at the server: `server: {name: tiered, tiers: M, clients: ...}`; any other
server is one tier. The clients' proximal term is `client: {mu: ...}` (the paper's lambda); for its polyline
compression use a codec.
Equals FedAvg: one tier and the client's mu=0, to 1e-6 (FedAT averages whole models, FedAvg differences).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fl import (
    Exchange,
    FedAvgEquivalent,
    Params,
    RoundGenerator,
    ServerContext,
    Strategy,
    WeightedMean,
    register,
    weighted_sum,
)


@dataclass(frozen=True)
class State:
    """The model, the newest model of each tier, and the number of rounds of each tier."""

    model: Params
    tiers: tuple[Params, ...]
    rounds: tuple[int, ...]


def tier_weights(rounds: Sequence[int]) -> list[float]:
    """Return T_{M-1-m} / T for each tier m, from the tiers' counts (M,), which are not all 0.

    >>> tier_weights([3, 1])
    [0.25, 0.75]
    """
    total = sum(rounds)
    return [count / total for count in reversed(rounds)]


@register("strategy", "fedat")
@dataclass(frozen=True, kw_only=True)
class FedAT(Strategy):
    """Weigh the models of tiers of clients."""

    client: ClassVar[str] = "fedat"
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(client={"mu": 0.0}, bits=False)

    def averages(self) -> bool:
        return True

    def init(self, model: Params, ctx: ServerContext) -> State:
        return State(model, (model,) * ctx.tiers, (0,) * ctx.tiers)

    def round(self, state: State, ctx: ServerContext) -> RoundGenerator:
        outcome = yield Exchange(state.model, {"trained": WeightedMean()})
        if outcome.value is None:
            return state, {}
        tiers, rounds = list(state.tiers), list(state.rounds)
        tiers[outcome.tier] = outcome.value["trained"]
        rounds[outcome.tier] += 1
        weights = tier_weights(rounds)
        model = weighted_sum((weight, tier) for weight, tier in zip(weights, tiers) if weight)
        return State(model, tuple(tiers), tuple(rounds)), {f"tier{m}": w for m, w in enumerate(weights)}
