"""RoLoRA: train one half of each adapter, as the round has it, beside the other half as received.

    even rounds:  (B, head) <- local steps, A as received        odd rounds:  (A, head) <- local steps, B as received

Chen, Guo, Ju, Dalal, Khisti 2024-25, arXiv:2409.02346, arXiv:2502.01755. Sends the change of what it trained.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from clients.lora import LoRA
from fl.registry import register
from fl.tensors.params import join

HALVES = ("B", "A")


@register("client", "rolora")
@dataclass(frozen=True, kw_only=True)
class RoLoRA(LoRA):
    receives: ClassVar[tuple[str, ...]] = ("A", "B", "turn")

    def start(self, given):
        return join(*(given.received[group] for group in (*HALVES, "head") if group in given.received))

    def phases_of(self, given, round_, rounds):
        turn = given.received[HALVES[given.config["turn"]]]
        trained = (*turn, *given.received.get("head", ()))
        return tuple(replace(phase, trains=trained) for phase in self.phases(round_, rounds))

    def finish(self, end):
        turn = end.received[HALVES[end.config["turn"]]]
        return self.sent(end.delta, {name: tree for name, tree in {**end.received, "model": turn}.items()}), None

    def context_after_training(self, ctx, reply):
        turn = HALVES[ctx.config["turn"]]
        deltas = {turn: reply.update.groups["model"], "head": reply.update.groups.get("head")}
        moved = {name: ctx.received[name] + delta for name, delta in deltas.items() if delta is not None}
        return replace(ctx, received={**ctx.received, **moved})
