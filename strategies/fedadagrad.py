"""Adagrad on the server (FedAdagrad).

    m <- beta1 m + (1 - beta1) d;   v <- v + d^2;   model <- model + lr * m / (sqrt(v) + tau)

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan 2021, arXiv:2003.00295, Algorithm 2.  The common part, and
where it differs from the paper, is in `strategies/adaptive.py`.  beta1=0 as in the paper's experiments.
Neutral: none; v grows with every round.
"""

from __future__ import annotations

from dataclasses import dataclass

from fl.registry import register
from strategies.adaptive import Adaptive


@register("strategy", "fedadagrad")
@dataclass(frozen=True, kw_only=True)
class FedAdagrad(Adaptive):
    beta1: float = 0.0

    def second(self, v, square):
        return v + square
