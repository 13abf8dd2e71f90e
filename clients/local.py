"""Each client on its own: its model is its state, and nothing is sent.

w_i <- local steps from w_i, which begins as the run's first model
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from fl.method.local_training import LocalTraining
from fl.registry import register


@register("client", "local")
@dataclass(frozen=True, kw_only=True)
class Local(LocalTraining):
    sends: ClassVar[tuple[str, ...]] = ()
    receives: ClassVar[tuple[str, ...]] = ()

    def first_state(self, given):
        return given.initial.trained

    def start(self, given):
        return given.state

    def finish(self, end):
        return {}, end.params

    def context_after_training(self, ctx, reply):
        return replace(ctx, state=reply.state)
