"""FedAT's clients: local training near the received model; they send their model.

    min_w  L_k(w) + mu/2 ||w - received||^2

Chai, Chen, Zhao, Cheng, Rangwala 2021, arXiv:2010.05958, equation of the local objective (mu is its lambda).  The
same as FedAsync's clients (`clients/fedasync.py`) with another default of mu.
Equals plain local training: mu=0.
"""

from __future__ import annotations

from dataclasses import dataclass

from fl import register

from .fedasync import FedAsync


@register("client", "fedat")
@dataclass(frozen=True, kw_only=True)
class FedAT(FedAsync):
    """Local training with a proximal term, which sends the trained model.

    Args:
        mu: weight of the squared distance to the received model, at least 0. 0 is plain local training.
    """

    mu: float = 0.01
