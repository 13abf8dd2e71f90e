"""signSGD with majority vote.    model <- model + step * sign(sum_i sign(local_i - model))

Bernstein, Wang, Azizzadenesheli, Anandkumar 2018, arXiv:1802.04434: each client has one vote for each number; of one local step the
sign of its update is that of minus its gradient.  Differs from the paper: the model goes down whole, and not as the signs of what
it changed by; of a vote that is a tie, or of zeros alone, nothing moves.  Neutral: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl.method.reduction import Meta, Sum
from fl.method.strategy import Strategy
from fl.tensors.params import Params, sign


@dataclass(frozen=True)
class Votes(Sum):
    """sum_i sign(value_i)"""

    linear: ClassVar[bool] = False

    def lift(self, value: Params, meta: Meta) -> Params:
        return sign(value)


@dataclass(frozen=True, kw_only=True)
class MajorityVote(Strategy):
    step_size: float = 0.001

    def __post_init__(self):
        if not self.step_size > 0:
            raise ValueError(f"step_size: {self.step_size} is not positive; 0.001 is the default")

    def reduction(self, state, ctx):
        return Votes()

    def step(self, state, votes, ctx):
        return state + self.step_size * sign(votes), {}
