"""FedAT: tiers of clients of like speed, each averaging at its own pace; the server weighs the slow tiers' models more.

    w_m <- mean_{k in the tier's cohort} w_k                              m: the tier whose round ends, 0 the quickest of M
    model <- sum_m (T_{M-1-m} / T) w_m                                    T_m: rounds of tier m so far, T their sum

Chai, Chen, Zhao, Cheng, Rangwala 2021, arXiv:2010.05958, Algorithm 1 and the equation of its weighted aggregation: a tier has
the weight of the count of its mirror image.  The tier's mean is weighted by `num_examples`.  A tier that has not reported yet
stands with the run's first model, and until the slowest has, the quickest has no weight: as the equation has it.
M is the server's: `server: {name: tiered, tiers: M, clients: ...}`; any other server is one tier.
The clients' proximal term is `client: {mu: ...}` (the paper's lambda); its polyline compression is a codec's affair.
Neutral: one tier and the client's mu=0 is FedAvg, to 1e-6 (whole models are averaged here, differences there).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from fl.method.reduction import WeightedMean
from fl.method.requests import Exchange
from fl.method.strategy import FedAvgEquivalent, Strategy
from fl.registry import register
from fl.tensors.params import Params


@dataclass(frozen=True)
class State:
    model: Params
    tiers: tuple[Params, ...]  # each one's newest model
    rounds: tuple[int, ...]  # of each


def tier_weights(rounds: Sequence[int]) -> list[float]:
    """(M,) T_{M-1-m} / T of the tiers' counts (M,), not all 0."""
    total = sum(rounds)
    return [count / total for count in reversed(rounds)]


@register("strategy", "fedat")
@dataclass(frozen=True, kw_only=True)
class FedAT(Strategy):
    client: ClassVar[str] = "fedat"
    fedavg_equivalent: ClassVar[FedAvgEquivalent] = FedAvgEquivalent(client={"mu": 0.0}, bits=False)

    def averages(self):
        return True

    def init(self, model, ctx):
        return State(model, (model,) * ctx.tiers, (0,) * ctx.tiers)

    def round(self, state, ctx):
        outcome = yield Exchange(state.model, {"trained": WeightedMean()})
        if outcome.value is None:
            return state, {}
        tiers, rounds = list(state.tiers), list(state.rounds)
        tiers[outcome.tier] = outcome.value["trained"]
        rounds[outcome.tier] += 1
        weights = tier_weights(rounds)
        used = [weight * tier for weight, tier in zip(weights, tiers) if weight]
        model = sum(used[1:], used[0])
        return State(model, tuple(tiers), tuple(rounds)), {f"tier{m}": w for m, w in enumerate(weights)}
