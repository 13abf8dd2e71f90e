"""FedRep: the body is averaged; each client first fits its own head to it, then trains the body (`clients/fedrep.py`).

    v_i <- head epochs, u as received;    u_i <- body epochs, v_i fixed;    u <- u + sum_i p_i (u_i - u)

Collins, Hassani, Mokhtari, Shakkottai 2021, arXiv:2102.07078.  Traffic per client and round: |u| floats each way.
`private` is by default the last linear layer.
Differs from the paper: the mean is weighted by samples (weights=uniform is the paper's).
Equals FedAvg: private=(), equal bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl import FedAvgEquivalent, register

from .partial import Partial


@register("strategy", "fedrep")
@dataclass(frozen=True, kw_only=True)
class FedRep(Partial):
    """Average the body of the model; clients train head and body one after the other."""

    client: ClassVar[str] = "fedrep"
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(
        strategy={"private": (), "weights": "examples"}
    )
