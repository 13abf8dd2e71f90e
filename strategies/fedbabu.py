"""FedBABU: the body is trained and averaged below a head that nobody trains; clients fine-tune only to predict.

    u <- u + sum_i p_i (u_i - u),    head = the run's first;    (`clients/fedbabu.py` has the fine-tuning)

Oh, Kim, Yun 2022, arXiv:2106.06042. `own`: patterns of the head, by default the last linear layer; its first weights come from the seed
and cost no bytes. Traffic per client and round: |u| floats each way. eval/* is of the body under the first head, clients/* of the
fine-tuned models. Differs from the paper: the head's first weights are the model's own initialisation (the paper tries others too).
Neutral: own=() with the client's tune_epochs=0 is FedAvg; to 1e-6, as it is trained in the loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl.method.strategy import FedAvgEquivalent
from fl.registry import register
from strategies.partial import Partial


@register("strategy", "fedbabu")
@dataclass(frozen=True, kw_only=True)
class FedBABU(Partial):
    client: ClassVar[str] = "fedbabu"
    fedavg_equivalent: ClassVar[FedAvgEquivalent] = FedAvgEquivalent(
        {"own": (), "weights": "examples"}, {"tune_epochs": 0}, bits=False
    )
