"""LoRA-FAIR: FedIT, with a correction of B that makes up for averaging the halves apart.

    Abar, Bbar the means;    E = sum_i p_i B_i A_i - Bbar Abar;    A <- Abar,   B <- Bbar + E Abar^T (Abar Abar^T + lam I)^-1

Bian, Wang, Zhang, Xu 2024 (ICCV 2025), arXiv:2411.14961. The correction minimises ||E - dB Abar||^2 + lam ||dB||^2. Traffic as FedIT's.
Differs from the paper: a closed form in place of an iterative maximisation of similarity. Neutral: as lam grows, FedIT.
"""

from __future__ import annotations

from dataclasses import dataclass

from fl.method.reduction import WeightedMean
from fl.models import adapter
from fl.registry import register
from strategies import lora_math as lora
from strategies.fedit import FedIT


@register("strategy", "lora_fair")
@dataclass(frozen=True, kw_only=True)
class LoRAFair(FedIT):
    lam: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        if self.lam <= 0:
            raise ValueError(
                f"lam: {self.lam} is not positive, and without it the correction may not be bounded; try 0.01"
            )

    def reduction(self, state, ctx):
        sent = lora.groups(state)
        return {g: WeightedMean(self.weights) for g in sent} | {
            "model": lora.Products(sent["model"], self.weights, mean=True)
        }

    def step(self, state, reduced, ctx):
        pooled, changed = reduced["model"], {}
        for layer, (a, b) in adapter.layers(state).items():
            first, second = pooled.mean[a], pooled.mean[b]
            error = lora.dense(lora.residual(pooled.pieces[layer], first, second))
            changed |= {a: first, b: second + lora.fair_correction(error, first, self.lam)}
        heads = [reduced["head"]] if "head" in reduced else []
        return state.replace(changed).added(*heads), {}
