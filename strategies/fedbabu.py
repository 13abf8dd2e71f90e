"""FedBABU: only the body is trained and averaged; the head keeps its initial values until a client fine-tunes a copy.

    u <- u + sum_i p_i (u_i - u),    head = the initial one        (`clients/fedbabu.py` has the fine-tuning)

Oh, Kim, Yun 2022, arXiv:2106.06042.  Traffic per client and round: |u| floats each way; the head comes from the seed
and costs no bytes.  `private` is by default the last linear layer.  eval/* measures the body with the initial head,
clients/* measures the fine-tuned models.
Differs from the paper: the head's initial values are the model's own initialisation (the paper tries others too).
Equals FedAvg: private=() and the client's tune_epochs=0, equal bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl import FedAvgEquivalent, register

from .partial import Partial


@register("strategy", "fedbabu")
@dataclass(frozen=True, kw_only=True)
class FedBABU(Partial):
    """Average the body of the model; the head is never trained in a round."""

    client: ClassVar[str] = "fedbabu"
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(
        strategy={"private": (), "weights": "examples"}, client={"tune_epochs": 0}
    )
