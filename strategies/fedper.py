"""FedPer: the body is averaged, each client has its own head, and a client trains both together.

    (u, v_i) <- local steps from (u, v_i);    u <- u + sum_i p_i (u_i - u)

Arivazhagan, Aggarwal, Singh, Choudhary 2019, arXiv:1912.00818.  Traffic per client and round: |u| floats each way.
`private` is by default the last linear layer (the paper's K_P = 1).
Differs from the paper: all clients start with the same head, the initial one of the run.
Equals FedAvg: private=(), equal bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl import FedAvgEquivalent, register

from .partial import Partial


@register("strategy", "fedper")
@dataclass(frozen=True, kw_only=True)
class FedPer(Partial):
    """Average the body of the model; the head is private."""

    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(
        strategy={"private": (), "weights": "examples"}
    )
