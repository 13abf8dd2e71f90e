"""A part of the model is the client's own: the base of FedPer, LG-FedAvg, FedBN and FedRep.

    (u, v_i) <- local steps from (received u, own v_i);    send u - received u;    keep v_i

Which tensors are its own comes with the broadcast (config "own"). They begin as the run's first ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fl.method.local_training import LocalTraining
from fl.registry import register
from fl.tensors.params import join


@register("client", "partial")
@dataclass(frozen=True, kw_only=True)
class Partial(LocalTraining):
    def first_state(self, given):
        own = given.config.get("own", ())
        return given.initial.trained.select(own) if own else None

    def start(self, given):
        received = given.received["model"]
        return received if given.state is None else join(received, given.state)

    def finish(self, end):
        if end.state is None:
            return {"model": end.delta}, None
        return {"model": end.delta.select(shared(end))}, end.params.select(end.state)

    def context_after_training(self, ctx, reply):
        received, change = ctx.received["model"], reply.update.groups["model"]
        return replace(ctx, received={**ctx.received, "model": received.added(change)}, state=reply.state)


def shared(given) -> list[str]:
    """The names that are not the client's own. (An evaluation sends the whole model.)"""
    own = set(given.config.get("own", ()))
    return [name for name in given.received["model"] if name not in own]
