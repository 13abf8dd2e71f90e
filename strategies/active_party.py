"""Bounds of vertical learning: the active party trains alone, on its own columns or on the columns of all parties.

    own:  outputs = top(bottom(x_0))          all:  outputs = top(bottom(x_0 | x_1 | ... | x_P-1))

The lower bound costs no bytes. For the upper bound each passive party sends its training rows once, before round 0:
n d_p b bytes for n rows, d_p columns and b bytes per number; nothing else travels. A round is an epoch on the batches
of `splitnn`. Passive parties train nothing.
Equals FedAvg: no setting; `own` is central training on the active party's columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

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


@register("strategy", "active_party")
@dataclass(frozen=True, kw_only=True)
class ActiveParty(PartyModel):
    """Training of the active party alone: the lower and the upper bound of vertical methods.

    Args:
        columns: `own`: its own columns. `all`: those of all parties, which are sent once.
        hidden: hidden units of the bottom model.
        cut: outputs of the bottom model, positive.
        top: hidden units of the top model.
        optimiser: rule of a step.
        lr: learning rate, at least 0, or a schedule over rounds.
        batch: rows of a step, positive.
    """

    columns: Literal["own", "all"] = "own"

    client: ClassVar[str] = "raw_columns"
    example_config: ClassVar[Mapping[str, Any]] = {
        "partition": {"name": "vertical", "parties": 3},
        "cohort.size": 2,
        "strategy.columns": "all",
        "strategy.cut": 4,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of(("own", "all"), columns=self.columns)

    def passive_widths(self, ctx: ServerContext) -> list[int]:
        return []

    def setup(self, state: State, ctx: ServerContext) -> RoundGenerator:
        if self.columns == "own":
            return state, {}
        found = yield self._asked("train", np.arange(ctx.population), free=False)
        collected = tuple(part.clone() for part in answers(found.value and found.value["columns"], ctx))
        width = int(np.prod(ctx.server["x"].shape[1:])) + sum(part.shape[1] for part in collected)
        return replace(self.first_state(width, ctx), collected=collected), {}

    def round(self, state: State, ctx: ServerContext) -> RoundGenerator:
        yield from ()
        rows = {**ctx.server, "x": self._joined(ctx.server["x"], state.collected)}
        return self.epoch(state, rows, [], ctx)

    def evaluation(self, state: State, ctx: ServerContext) -> EvaluationGenerator:
        found: dict[str, float] = {}
        for view, prefix, rows in held_out(ctx):
            parts: list[Tensor] = []
            if self.columns == "all":
                answer = yield self._asked(view, None, free=True)
                parts = answers(answer.value and answer.value["columns"], ctx)
            outputs = self.predictions(state, self._joined(rows["x"], parts), [])
            found |= measured(ctx, outputs, rows, prefix)
            found[f"{prefix}/inference_bytes"] = sum(part.nbytes for part in parts)
        return found

    def _asked(self, view: str, cohort: np.ndarray | None, free: bool) -> Exchange:
        down = Broadcast(config={"view": view})
        return Exchange(down, {"columns": Stack()}, work="columns", cohort=cohort, free=free, samples=0)

    @staticmethod
    def _joined(x: Tensor, parts: Any) -> Tensor:
        """Return the active party's columns and those of the others side by side, (n, D)."""
        return torch.cat([x.flatten(1).float(), *parts], 1)
