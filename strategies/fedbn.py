"""FedBN: normalisation layers stay with the clients, the rest is averaged.

    u <- u + sum_i p_i (u_i - u),    u all but the tensors of normalisation layers

Li, Jiang, Zhang, Kamp, Dou 2021, arXiv:2102.07623. `own`: other patterns, by default every batch, instance, group and layer
normalisation of the model. Traffic per client and round: |u| floats each way. With BatchNorm, `model.batch_norm: local` is the paper's
method (running statistics stay with the clients too), `batch` normalises by the batch alone. Neutral: own=() is FedAvg.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fl.models.nn import norm_names
from fl.registry import register
from strategies.partial import Partial


@register("strategy", "fedbn")
@dataclass(frozen=True, kw_only=True)
class FedBN(Partial):
    example_config: ClassVar[dict[str, Any]] = {"strategy.own": ["1.*"]}  # the example's model has no normalisation

    def default_own(self, model, module):
        names = norm_names(module, model)
        if not names:
            raise ValueError(
                "model: it has no normalisation layer with parameters; choose one that has, or name `own` tensors"
            )
        return names
