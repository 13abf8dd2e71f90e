"""FreeMatch: FedAvg over clients that learn pseudo-labels above thresholds that follow the model and the class.

    w <- w + sum_i p_i (w_i - w)            (`clients/freematch.py` has the local steps)

Wang et al. 2023, arXiv:2205.07246, at each client.  p_i counts all training rows of client i, with and without
labels; the client's `weight_view` changes that.  The traffic is FedAvg's.
Equals FedAvg: the client's unlabelled_steps=0, weight_view=train, to 1e-6 (it trains in the loop).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl import FedAvgEquivalent, register

from .fedavg import FedAvg


@register("strategy", "freematch")
@dataclass(frozen=True, kw_only=True)
class FreeMatch(FedAvg):
    """FedAvg over clients whose thresholds for pseudo-labels adapt."""

    client: ClassVar[str] = "freematch"
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(
        strategy={"lr": 1.0, "weights": "examples"},
        client={"unlabelled_steps": 0, "weight_view": "train"},
        bits=False,
    )
