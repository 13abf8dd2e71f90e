"""Local SGD, what FedAvg's clients do.    repeat:  w <- w - lr * mean gradient of a batch;    send w - received

McMahan, Moore, Ramage, Hampson, Agüera y Arcas 2017, arXiv:1602.05629 (ClientUpdate).  Any optimiser will do.
Neutral: as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from fl.method.local_training import LocalTraining
from fl.registry import register


@register("client", "sgd")
@dataclass(frozen=True, kw_only=True)
class LocalSGD(LocalTraining):
    pass
