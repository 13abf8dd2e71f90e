"""FedDPA-LoRA: one adapter is averaged over all clients; each client also has a private one.

    A <- A + sum_i p_i (A_i - A),   B <- B + sum_i p_i (B_i - B)  p_i = 1 / clients      (weights=examples: n_i / sum n)

Yang, Long, Shen, Jiang, Blumenstein 2024, arXiv:2403.19211.  Uniform weights as in the authors' program.  The
server's part and the traffic are FedIT's; clients train the private adapter and predict with both
(`clients/feddpa_lora.py`).  The clients' own metrics count.
Equals FedIT: the shared part, with the same weights, whatever the private adapters are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl import Params, ServerContext, register

from . import lora_math as lora
from .fedit import FedIT


@register("strategy", "feddpa_lora")
@dataclass(frozen=True, kw_only=True)
class FedDPALoRA(FedIT):
    """FedIT over clients that also train a private adapter.

    Args:
        weights: weights of the mean: `uniform` (the authors' program) or `examples` (number of training samples).
    """

    weights: lora.Weights = "uniform"

    client: ClassVar[str] = "feddpa_lora"

    def init(self, model: Params, ctx: ServerContext) -> Params:
        lora.adapted_weights(model, ctx.frozen)
        return super().init(model, ctx)
