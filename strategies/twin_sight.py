"""Twin-sight: FedAvg on the server, over clients with a supervised and a self-supervised network.

    (s, u, g) <- (s, u, g) + sum_i p_i (change of client i),    p_i = n_i / sum n

Zhang, Yang, Tian, Wang, Liu, Han 2024, arXiv:2402.14430.  Clients are `clients/twin_sight.py`; s, u and the projection
g travel in both directions: 4 (|s| + |u| + |g|) bytes per client and direction. Evaluations use s.
Equals FedAvg: the client's mu_ins = mu_sim = pseudo = unlabelled_weight = 0 is FedAvg over the rows with labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fl import FedAvgEquivalent, register

from .fedavg import FedAvg


@register("strategy", "twin_sight")
@dataclass(frozen=True, kw_only=True)
class TwinSight(FedAvg):
    """FedAvg over clients with twin networks."""

    client: ClassVar[str] = "twin_sight"
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(
        strategy={"lr": 1.0, "weights": "examples"},
        client={"mu_ins": 0.0, "mu_sim": 0.0, "pseudo": 0.0, "unlabelled_weight": 0.0},
        bits=False,
    )
    example_config: ClassVar[Mapping[str, Any]] = {
        "labels": {"name": "clients", "labelled": 5},
        "data.strong": ["noise"],
        "client.hidden": 8,
        "client.projection": 4,
    }
