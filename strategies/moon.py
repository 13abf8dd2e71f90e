"""MOON: FedAvg on the server, over clients that contrast representations (`clients/moon.py`).

    w <- w + sum_i p_i (w_i - w)

Li, He, Song 2021, arXiv:2103.16257.  The mean is weighted by `num_examples`, as in the paper.
Equals FedAvg: the client's mu=0, to 1e-6 (MOON trains in the loop, FedAvg by the fastest plan).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl import FedAvgEquivalent, register

from .fedavg import FedAvg


@register("strategy", "moon")
@dataclass(frozen=True, kw_only=True)
class Moon(FedAvg):
    """FedAvg over clients with a model-contrastive loss."""

    client: ClassVar[str] = "moon"
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = FedAvgEquivalent(
        strategy={"lr": 1.0, "weights": "examples"}, client={"mu": 0.0}, bits=False
    )
