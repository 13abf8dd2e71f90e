"""FedBN: normalisation layers stay with the clients, all other tensors are averaged.

    u <- u + sum_i p_i (u_i - u),    u: all tensors but those of normalisation layers

Li, Jiang, Zhang, Kamp, Dou 2021, arXiv:2102.07623.  Traffic per client and round: |u| floats each way.
`private` is by default every batch, instance, group and layer normalisation of the model.  With BatchNorm,
`model.batch_norm: local` is the paper's method (running statistics stay with the clients too); with `batch` each batch
is normalised by itself; with `averaged` the statistics are tensors of the layers, and private as well.
Equals FedAvg: private=(), equal bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from fl import Params, norm_names, register

from .partial import Partial


@register("strategy", "fedbn")
@dataclass(frozen=True, kw_only=True)
class FedBN(Partial):
    """Average all tensors except those of normalisation layers."""

    # the example's model has no normalisation
    example_config: ClassVar[dict[str, Any]] = {"strategy.private": ["1.*"]}

    def default_private(self, model: Params, module: nn.Module) -> list[str]:
        names = norm_names(module, model)
        if not names:
            raise ValueError(
                "model: it has no normalisation layer with parameters; use one that has, or name `private` tensors"
            )
        return names
