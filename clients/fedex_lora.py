"""FedEx-LoRA: train the received adapters on weights that the server's increments have changed.

    W <- W0 + received change;    (A, B, head) <- local steps from the received values;    send local minus received

Singhal, Ponkshe, Vepakomma 2024, arXiv:2410.09432.  The change is the sum of all increments. A client
receives the increments that it lacks, dense or as products of factors (`patched`), or the dense sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fl import Initial, Params, TrainingInputs, Tree, adapter, register

from .lora import LoRA


@register("client", "fedex_lora")
@dataclass(frozen=True, kw_only=True)
class FedExLoRA(LoRA):
    """Local training of received adapters on changed base weights."""

    def initial_tensors(self, initial: Initial, received: Mapping[str, Tree]) -> Initial:
        if "base" not in received:
            return initial
        return replace(initial, frozen=adapter.folded(initial.frozen, received["base"]))

    def patched(self, group: str, value: Tree, patch: Tree) -> Tree:
        return adapter.patched(value, patch)

    def start(self, inputs: TrainingInputs) -> Params:
        received = {name: group for name, group in inputs.received.items() if name != "base"}
        return super().start(replace(inputs, received=received))
