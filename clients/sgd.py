"""Local SGD, the client of FedAvg.    repeat:  w <- w - lr * mean gradient of a batch;    send w - received

McMahan, Moore, Ramage, Hampson, Agüera y Arcas 2017, arXiv:1602.05629 (ClientUpdate).  Any optimiser can be used.
Equals FedAvg: always.
"""

from __future__ import annotations

from dataclasses import dataclass

from fl import LocalTraining, register


@register("client", "sgd")
@dataclass(frozen=True, kw_only=True)
class LocalSGD(LocalTraining):
    """Plain local training from the received model."""
