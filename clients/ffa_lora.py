"""FFA-LoRA: train B, and the head, with an A that keeps its initial values.

    (B, head) <- local steps from the received values, A = its initial values;    send local minus received

Sun, Li, Li, Ding 2024, arXiv:2403.12313.
"""

from __future__ import annotations

from dataclasses import dataclass

from fl import Params, TrainingInputs, adapter, register

from .lora import LoRA


@register("client", "ffa_lora")
@dataclass(frozen=True, kw_only=True)
class FFALoRA(LoRA):
    """Local training of the B halves of adapters (and a head)."""

    def start(self, inputs: TrainingInputs) -> Params:
        model = super().start(inputs)
        frozen = set(adapter.first(model))
        return model.select([name for name in model if name not in frozen])
