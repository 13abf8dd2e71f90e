"""FedOnce: each passive party sends a representation of its rows once; then the active party trains on its own.

    before round 0:  passive p learns z_p (n, width) without labels and sends it       (clients/fedonce.py)
    a round:         an epoch on top(bottom(x_0) | z_1 | ... | z_P-1), with z fixed

Wu, Li, He 2022, arXiv:2208.10278. Bytes: (P - 1) n width b up before round 0, for n training rows and b bytes per
number; nothing else travels. Predictions need z of new rows: (P - 1) n_new width b, which the ledger does not count.
Differs from the paper: no differential privacy; models and optimiser are those of `splitnn`.
Equals FedAvg: no setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from fl import (
    Broadcast,
    EvaluationGenerator,
    Exchange,
    RoundGenerator,
    ServerContext,
    Stack,
    checks,
    register,
)

from .party_model import PartyModel, State, answers, held_out, measured


@register("strategy", "fedonce")
@dataclass(frozen=True, kw_only=True)
class FedOnce(PartyModel):
    """Vertical learning with one communication.

    Args:
        width: numbers that represent a row of a passive party, at least 2.
        hidden: hidden units of the active party's bottom model.
        cut: outputs of the bottom model, positive.
        top: hidden units of the top model.
        optimiser: rule of a step of the active party.
        lr: learning rate of the active party, at least 0, or a schedule over rounds.
        batch: rows of a step, positive.
    """

    width: int = 3

    client: ClassVar[str] = "fedonce"
    example_config: ClassVar[Mapping[str, Any]] = {
        "partition": {"name": "vertical", "parties": 3},
        "cohort.size": 2,
        "strategy.cut": 4,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.at_least(2, width=self.width, hint="on the unit sphere of one number there are two points")

    def passive_widths(self, ctx: ServerContext) -> list[int]:
        return [self.width] * ctx.population

    def setup(self, state: State, ctx: ServerContext) -> RoundGenerator:
        down = Broadcast(config={"view": "train", "width": self.width})
        reduction, cohort = {"representation": Stack()}, np.arange(ctx.population)
        found = yield Exchange(down, reduction, work="represent", cohort=cohort)
        collected = answers(found.value and found.value["representation"], ctx)
        return replace(state, collected=tuple(z.clone() for z in collected)), {}

    def round(self, state: State, ctx: ServerContext) -> RoundGenerator:
        yield from ()
        return self.epoch(state, ctx.server, state.collected, ctx)

    def evaluation(self, state: State, ctx: ServerContext) -> EvaluationGenerator:
        found: dict[str, float] = {}
        for view, prefix, rows in held_out(ctx):
            down = Broadcast(config={"view": view})
            answer = yield Exchange(down, {"representation": Stack()}, work="predict", free=True)
            parts = answers(answer.value and answer.value["representation"], ctx)
            found |= measured(ctx, self.predictions(state, rows["x"], parts), rows, prefix)
            found[f"{prefix}/inference_bytes"] = sum(part.nbytes for part in parts)
        return found
