"""One part of the model is shared, the other is not: bases of the clients of FedPer, FedRep, FedBABU and their like.

    Partial      (u, v_i) <- local steps from (received u, private v_i);    send u - received u;    keep v_i
    FixedPart    u <- local steps from received u;    send u - received u;    v keeps its initial values

The names of the private tensors come with the broadcast (config "private"). v_i starts with the initial values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fl import ClientContext, LocalTraining, Params, Phase, Reply, TrainingInputs, TrainingResult, Tree, join, register


@register("client", "partial")
@dataclass(frozen=True, kw_only=True)
class Partial(LocalTraining):
    """Local training of shared and private tensors together; only the shared ones are sent."""

    def first_state(self, inputs: TrainingInputs) -> Tree:
        private = inputs.config.get("private", ())
        return inputs.initial.trained.select(private) if private else None

    def start(self, inputs: TrainingInputs) -> Params:
        received = inputs.received["model"]
        return received if inputs.state is None else join(received, inputs.state)

    def finish(self, end: TrainingResult) -> tuple[Mapping[str, Tree], Tree]:
        if end.state is None:
            return {"model": end.delta}, None
        return {"model": end.delta.select(shared_names(end))}, end.params.select(end.state)

    def context_after_training(self, ctx: ClientContext, reply: Reply) -> ClientContext:
        return replace(with_update(ctx, reply), state=reply.state)


@dataclass(frozen=True, kw_only=True)
class FixedPart(LocalTraining):
    """Local training of the shared tensors; the others keep their initial values."""

    def start(self, inputs: TrainingInputs) -> Params:
        return inputs.received["model"].select(shared_names(inputs))  # all other tensors keep their initial values

    def phases(self, round_: int, rounds: int) -> tuple[Phase, ...]:
        (phase,) = super().phases(round_, rounds)
        return (
            replace(phase, trains=self.trains or ("*",)),
        )  # of the shared part: the rest is not among the parameters

    def context_after_training(self, ctx: ClientContext, reply: Reply) -> ClientContext:
        return with_update(ctx, reply)


def shared_names(inputs: TrainingInputs | ClientContext) -> list[str]:
    """Return the names of the received tensors that are not private. (An evaluation sends the whole model.)"""
    private = set(inputs.config.get("private", ()))
    return [name for name in inputs.received["model"] if name not in private]


def with_update(ctx: ClientContext, reply: Reply) -> ClientContext:
    """Return the context in which the received model has moved by the client's own update."""
    received, change = ctx.received["model"], reply.update.groups["model"]
    return replace(ctx, received={**ctx.received, "model": received.added(change)})
