"""Each client alone: its model is its state, and nothing is sent.    w_i <- local steps from w_i

w_i starts with the initial values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from fl import ClientContext, LocalTraining, Params, Reply, TrainingInputs, TrainingResult, Tree, register


@register("client", "local")
@dataclass(frozen=True, kw_only=True)
class Local(LocalTraining):
    """Local training of the client's own model."""

    sends: ClassVar[tuple[str, ...]] = ()
    receives: ClassVar[tuple[str, ...]] = ()
    private_models: ClassVar[bool] = True

    def first_state(self, inputs: TrainingInputs) -> Tree:
        return inputs.initial.trained

    def start(self, inputs: TrainingInputs) -> Params:
        return inputs.state

    def finish(self, end: TrainingResult) -> tuple[Mapping[str, Tree], Tree]:
        return {}, end.params

    def context_after_training(self, ctx: ClientContext, reply: Reply) -> ClientContext:
        return replace(ctx, state=reply.state)
