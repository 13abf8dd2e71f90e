"""LoRA-FAIR: FedIT with a correction of B for the error of averaging the halves separately.

    Abar, Bbar the means;  E = sum_i p_i B_i A_i - Bbar Abar;  A <- Abar,  B <- Bbar + E Abar^T (Abar Abar^T + lam I)^-1

Bian, Wang, Zhang, Xu 2024 (ICCV 2025), arXiv:2411.14961.  The correction minimises ||E - dB Abar||^2 + lam ||dB||^2.
The traffic is FedIT's.
Differs from the paper: a closed form in place of an iterative maximisation of similarity.
Equals FedIT: in the limit of a large lam.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fl import Metrics, Params, Reduction, ServerContext, WeightedMean, adapter, checks, register

from . import lora_math as lora
from .fedit import FedIT


@register("strategy", "lora_fair")
@dataclass(frozen=True, kw_only=True)
class LoRAFair(FedIT):
    """FedIT with a corrected B.

    Args:
        lam: weight of the size of the correction, positive. A large value is FedIT.
    """

    lam: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive(lam=self.lam, hint="without it the correction may be unbounded; try 0.01")

    def reduction(self, state: Params, ctx: ServerContext) -> dict[str, Reduction]:
        sent = lora.groups(state)
        means: dict[str, Reduction] = {group: WeightedMean(self.weights) for group in sent}
        return means | {"model": lora.Products(sent["model"], self.weights, mean=True)}

    def step(self, state: Params, reduced: dict[str, Any], ctx: ServerContext) -> tuple[Params, Metrics]:
        pooled: lora.Pooled = reduced["model"]
        means, changed = pooled.mean, dict[str, Tensor]()
        assert means is not None  # the reduction asks for it
        for layer, (a, b) in adapter.layers(state).items():
            first, second = means[a], means[b]
            error = lora.dense(lora.residual(pooled.pieces[layer], first, second))
            changed |= {a: first, b: second + lora.fair_correction(error, first, self.lam)}
        heads = [reduced["head"]] if "head" in reduced else []
        return state.replace(changed).added(*heads), {}
