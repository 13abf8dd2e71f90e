"""FFA-LoRA: A keeps its initial values, the same for all clients; B is averaged.

    B <- B + sum_i p_i (B_i - B),    p_i = n_i / sum n        (weights=uniform: 1 / number of clients)

Sun, Li, Li, Ding 2024 (ICLR 2024), arXiv:2403.12313.  Exact in the product, as mean(B_i) A = mean(B_i A).  A comes
from the seed and never travels: sum over layers of r * out floats, up and down.  Other trained tensors are averaged
as the group "head".  With VeRA, the vectors b are B, the vectors d are A: b is averaged exactly, d stays.
Equals FedAvg: on a model with only B (and the head) trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl import Params, ServerContext, adapter, register

from . import lora_math as lora
from .fedit import FedIT


@register("strategy", "ffa_lora")
@dataclass(frozen=True, kw_only=True)
class FFALoRA(FedIT):
    """Average only the B halves of adapters (and the head)."""

    client: ClassVar[str] = "ffa_lora"

    def init(self, model: Params, ctx: ServerContext) -> Params:
        if not adapter.second(model):
            raise ValueError("model.adapter: there is no adapter with a second half to train; set lora, rslora or vera")
        return model

    def broadcast(self, state: Params, ctx: ServerContext) -> dict[str, Params]:
        sent = lora.groups(state)
        return sent | {"model": sent["model"].select(adapter.second(state))}
