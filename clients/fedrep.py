"""FedRep: many epochs on the own head beside the received body, then the body beside that head.

    v_i <- `head_epochs` of steps, u as received;    u <- `epochs` (or `steps`) of steps, v_i fixed;    send u - received u, keep v_i

Collins, Hassani, Mokhtari, Shakkottai 2021, arXiv:2102.07078. Both use one optimiser, batch and learning rate; `head_lr` sets the head's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from clients.partial import Partial, shared
from fl.method.optimiser import LRSchedule
from fl.registry import register


@register("client", "fedrep")
@dataclass(frozen=True, kw_only=True)
class FedRep(Partial):
    head_epochs: int = 10
    head_lr: float | LRSchedule | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.head_epochs < 1:
            raise ValueError(
                f"head_epochs: {self.head_epochs} is not positive; fedbabu is the method that leaves the head alone"
            )
        if self.trains is not None:
            raise ValueError("trains: fedrep's two phases say what trains; keep others still with model.freeze")

    def phases(self, round_, rounds):
        (body,) = super().phases(round_, rounds)
        rate = self.lr if self.head_lr is None else self.head_lr
        head = replace(body, epochs=self.head_epochs, steps=None, name="head")
        return head.at_rate(rate, round_, rounds), replace(body, name="body")

    def phases_of(self, given, round_, rounds):
        head, body = self.phases(round_, rounds)
        if given.state is None:
            return (body,)
        return replace(head, trains=tuple(given.state)), replace(body, trains=tuple(shared(given)))
