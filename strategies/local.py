"""Local training only: what clients reach without each other, for comparison.

    nothing goes down, nothing comes up; each client goes on with its own model

The model of the run stays the first one; what counts are the clients' own figures (clients/*, val/*).
Neutral: none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl.method.strategy import Strategy
from fl.registry import register


@register("strategy", "local")
@dataclass(frozen=True, kw_only=True)
class Local(Strategy):
    client: ClassVar[str] = "local"

    def broadcast(self, state, ctx):
        return {}

    def reduction(self, state, ctx):
        return {}

    def step(self, state, reduced, ctx):
        return state, {}
