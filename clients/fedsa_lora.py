"""FedSA-LoRA: train an adapter whose A comes from the server and whose B, like the head, is the client's own.

    (A, B_i, head_i) <- local steps from (received A, own B_i, own head_i);    send A - received A;    keep B_i, head_i

Guo et al. 2024, arXiv:2410.01463. A new client begins with the model's first B (zeros) and head. What is received is shared, so
that a head in the broadcast (strategy's `head: shared`) is trained and sent back in place of an own one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl.method.local_training import LocalTraining
from fl.registry import register
from fl.tensors.params import join


@register("client", "fedsa_lora")
@dataclass(frozen=True, kw_only=True)
class FedSALoRA(LocalTraining):
    sends: ClassVar[tuple[str, ...]] = ("model", "head")
    optional: ClassVar[tuple[str, ...]] = ("head",)

    def first_state(self, given):
        shared = {name for group in given.received.values() for name in group}
        return given.initial.trained.select([name for name in given.initial.trained if name not in shared])

    def start(self, given):
        return join(*given.received.values(), given.state)

    def finish(self, end):
        return {group: end.delta.select(received) for group, received in end.received.items()}, end.params.select(
            end.state
        )
