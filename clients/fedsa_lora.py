"""FedSA-LoRA: train an adapter whose A comes from the server; B and the head are private.

    (A, B_i, head_i) <- local steps from (received A, private B_i, private head_i)
    send A - received A;    keep B_i, head_i

Guo et al. 2024, arXiv:2410.01463.  A new client starts with the initial B (zeros) and head.  Received tensors are
shared: a head in the broadcast (strategy's `head: shared`) is trained and sent back, and not private.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fl import LocalTraining, Params, TrainingInputs, TrainingResult, Tree, join, register


@register("client", "fedsa_lora")
@dataclass(frozen=True, kw_only=True)
class FedSALoRA(LocalTraining):
    """Local training of received and private tensors together; only the received ones are sent."""

    sends: ClassVar[tuple[str, ...]] = ("model", "head")
    optional: ClassVar[tuple[str, ...]] = ("head",)

    def first_state(self, inputs: TrainingInputs) -> Tree:
        shared = {name for group in inputs.received.values() for name in group}
        return inputs.initial.trained.select([name for name in inputs.initial.trained if name not in shared])

    def start(self, inputs: TrainingInputs) -> Params:
        return join(*inputs.received.values(), inputs.state)

    def finish(self, end: TrainingResult) -> tuple[Mapping[str, Tree], Tree]:
        sent = {group: end.delta.select(received) for group, received in end.received.items()}
        return sent, end.params.select(end.state)
