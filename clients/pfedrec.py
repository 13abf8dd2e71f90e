"""PFedRec: a private score function and a table of items that each user tunes.    score(u, i) = w_u . q_i + b_u

    w_u, b_u <- steps with Q fixed;    Q_u <- steps with w_u, b_u fixed;    send Q_u - Q, keep w_u, b_u, Q_u

Zhang, Long, Zhou, Yan, Zhang, Zhang, Yang 2023, arXiv:2301.08143.  There is no user vector beside the score function. A
user predicts with the table that it tuned last.
Differs from the authors' program: a user keeps the rows of Q_u that it trained; of other rows it uses the server's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from fl import ClientContext, LRSchedule, Phase, Reply, View, ranking, register

from .fedmf import FedMF
from .recommendation import updated_rows


@register("client", "pfedrec")
@dataclass(frozen=True, kw_only=True)
class PFedRec(FedMF):
    """A private score function, trained before the item rows; predictions with the user's own rows.

    Args:
        epochs: passes over the samples for each of the two parts, positive.
        batch: samples per step, positive.
        lr: learning rate of the score function, at least 0.
        rates: factors of the learning rate. The authors' item rows take 80 times the number of items.
        bias: whether the score function has a bias.
    """

    batch: int | Literal["full"] = 256
    lr: float | LRSchedule = 0.1
    bias: bool = True

    def phases(self, round_: int, rounds: int) -> tuple[Phase, ...]:
        (phase,) = super().phases(round_, rounds)
        return replace(phase, trains=("scorer.*",)), replace(phase, trains=(ranking.ITEMS,))

    def packed(self, ctx: ClientContext, samples: View, reply: Reply) -> Reply:
        packed = super().packed(ctx, samples, reply)
        table = packed.update.groups["items"]
        tuned = ctx.received["model"][ranking.ITEMS][table.keys.long()] + table.values
        old = None if ctx.state is None else ctx.state["tuned"]
        return replace(packed, state={**packed.state, "tuned": updated_rows(old, table.keys, tuned, table.counts)})

    def scores(self, ctx: ClientContext) -> Callable[[Tensor], Tensor]:
        params = self.start(self.inputs(ctx))
        if ctx.state is not None:
            params = params.clone()
            params[ranking.ITEMS][ctx.state["tuned"].keys.long()] = ctx.state["tuned"].values
        return ctx.net(params)
