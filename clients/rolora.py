"""RoLoRA: train one half of each adapter, in turn, with the other half as received.

    even rounds:  (B, head) <- local steps, A as received        odd rounds:  (A, head) <- local steps, B as received

Chen, Guo, Ju, Dalal, Khisti 2024-25, arXiv:2409.02346, arXiv:2502.01755.  Sends the change of the trained half.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from fl import ClientContext, Params, Phase, Reply, TrainingInputs, TrainingResult, Tree, join, register

from .lora import LoRA

HALVES = ("B", "A")


@register("client", "rolora")
@dataclass(frozen=True, kw_only=True)
class RoLoRA(LoRA):
    """Local training of one half of each adapter (and a head)."""

    receives: ClassVar[tuple[str, ...]] = ("A", "B", "turn")

    def start(self, inputs: TrainingInputs) -> Params:
        return join(*(inputs.received[group] for group in (*HALVES, "head") if group in inputs.received))

    def phases_of(self, inputs: TrainingInputs, round_: int, rounds: int) -> tuple[Phase, ...]:
        turn = inputs.received[HALVES[inputs.config["turn"]]]
        trained = (*turn, *inputs.received.get("head", ()))
        return tuple(replace(phase, trains=trained) for phase in self.phases(round_, rounds))

    def finish(self, end: TrainingResult) -> tuple[Mapping[str, Tree], Tree]:
        turn = end.received[HALVES[end.config["turn"]]]
        return self.sent(end.delta, {**end.received, "model": turn}), None

    def context_after_training(self, ctx: ClientContext, reply: Reply) -> ClientContext:
        turn = HALVES[ctx.config["turn"]]
        deltas = {turn: reply.update.groups["model"], "head": reply.update.groups.get("head")}
        trained = {name: ctx.received[name] + delta for name, delta in deltas.items() if delta is not None}
        return replace(ctx, received={**ctx.received, **trained})
