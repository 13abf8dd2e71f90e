"""Local training only: what clients reach without each other, for comparison.

    nothing goes down, nothing comes up; each client continues with its own model

The run's model keeps its initial values; the clients' own metrics count (clients/*, val/*).
Equals FedAvg: no setting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl import Metrics, Params, Reduction, ServerContext, Strategy, register


@register("strategy", "local")
@dataclass(frozen=True, kw_only=True)
class Local(Strategy):
    """Exchange nothing."""

    client: ClassVar[str] = "local"

    def broadcast(self, state: Params, ctx: ServerContext) -> dict[str, Params]:
        return {}

    def reduction(self, state: Params, ctx: ServerContext) -> dict[str, Reduction]:
        return {}

    def step(self, state: Params, reduced: dict[str, Params], ctx: ServerContext) -> tuple[Params, Metrics]:
        return state, {}
