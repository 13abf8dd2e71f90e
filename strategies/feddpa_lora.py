"""FedDPA-LoRA: an adapter averaged over all clients, beside which each has a private one.

    A <- A + sum_i p_i (A_i - A),   B <- B + sum_i p_i (B_i - B)        p_i = 1 / clients      (weights=examples: n_i / sum n)

Yang, Long, Shen, Jiang, Blumenstein 2024, arXiv:2403.19211. Uniform weights as in the authors' program. The server's part is FedIT's, and so is the traffic;
private training and predictions with both are the client's (`clients/feddpa_lora.py`). What counts are the clients' own figures.
Neutral: what is shared is FedIT's of the same weights, whatever the private adapters are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl.registry import register
from strategies import lora_math as lora
from strategies.fedit import FedIT


@register("strategy", "feddpa_lora")
@dataclass(frozen=True, kw_only=True)
class FedDPALoRA(FedIT):
    weights: lora.Weights = "uniform"

    client: ClassVar[str] = "feddpa_lora"
