"""FFA-LoRA: train B, and the head, beside an A that stays as the run began.

    (B, head) <- local steps from what was received, A = its first value;    send local minus received

Sun, Li, Li, Ding 2024, arXiv:2403.12313.
"""

from __future__ import annotations

from dataclasses import dataclass

from clients.lora import LoRA
from fl.models import adapter
from fl.registry import register


@register("client", "ffa_lora")
@dataclass(frozen=True, kw_only=True)
class FFALoRA(LoRA):
    def start(self, given):
        model = super().start(given)
        frozen = set(adapter.first(model))
        return model.select([name for name in model if name not in frozen])
