"""signSGD with majority vote.    model <- model + step_size * sign(sum_i sign(local_i - model))

Bernstein, Wang, Azizzadenesheli, Anandkumar 2018, arXiv:1802.04434.  Each client votes with the sign of each number of
its update. After one local step this is the sign of minus its gradient.
Differs from the paper: clients receive the whole model, not the signs of its change. A number does not change if its
votes are tied or all zero.
Equals FedAvg: no setting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl.method.reduction import Meta, Sum
from fl.method.strategy import Strategy
from fl.tensors.params import Params, sign


@dataclass(frozen=True)
class Votes(Sum):
    """Sum of the clients' votes: sum_i sign(value_i)."""

    linear: ClassVar[bool] = False

    def lift(self, value: Params, meta: Meta) -> Params:
        return sign(value)


@dataclass(frozen=True, kw_only=True)
class MajorityVote(Strategy):
    """Move each number of the model by `step_size` in the direction that most clients vote for.

    Args:
        step_size: change of a number per round, above 0.
    """

    step_size: float = 0.001

    def __post_init__(self):
        if not self.step_size > 0:
            raise ValueError(f"step_size: {self.step_size} is not positive; 0.001 is the default")

    def reduction(self, state, ctx):
        return Votes()

    def step(self, state, votes, ctx):
        return state + self.step_size * sign(votes), {}
