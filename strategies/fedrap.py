"""FedRAP: additive personalisation of a shared table of items.    score(u, i) = w_u . (D_ui + C_i) + b_u

    C <- C + 1/K sum_u (C_u - C)          lam, mu of the clients' loss (`clients/fedrap.py`) times curriculum(r)

Li, Long, Zhou 2023, arXiv:2301.09109.  curriculum(r) in round r: constant 1, tanh tanh(r / 10), linear min(r / 10, 1).
Released settings are constant: the schedules of the program do not reach its loss. So `constant` is the default.
Equals FedAvg: no setting, because negatives are drawn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from fl import Broadcast, ServerContext, checks, register

from .fedavg import State
from .recommendation import Recommendation

Curriculum = Literal["constant", "tanh", "linear"]
RISE = 10  # rounds in which a curriculum rises


def curriculum_weight(curriculum: Curriculum, round_: int) -> float:
    """Return the factor of lam and mu in a round.

    >>> curriculum_weight("constant", 0), curriculum_weight("tanh", 0), curriculum_weight("linear", 5)
    (1.0, 0.0, 0.5)
    """
    return {"constant": 1.0, "tanh": math.tanh(round_ / RISE), "linear": min(round_ / RISE, 1.0)}[curriculum]


@register("strategy", "fedrap")
@dataclass(frozen=True, kw_only=True)
class FedRAP(Recommendation):
    """Average the shared table; each user keeps a table of its own, a weight and a bias.

    Args:
        curriculum: factor of lam and mu by round: `constant` (1), `tanh` (tanh(r / 10)) or `linear` (min(r / 10, 1)).
    """

    curriculum: Curriculum = "constant"

    client: ClassVar[str] = "fedrap"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of(("constant", "tanh", "linear"), curriculum=self.curriculum)

    def broadcast(self, state: State, ctx: ServerContext) -> Broadcast:
        return Broadcast({"model": state.model}, config={"curriculum": curriculum_weight(self.curriculum, ctx.round)})
