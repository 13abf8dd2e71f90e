"""Federated Reconstruction: users rebuild their vectors in each round, so clients have no state.

    Q <- server optimiser along  sum_u n_u (Q_u - Q) / sum_u n_u

Singhal, Sidahmed, Garrett, Wu, Rush, Prakash 2021, arXiv:2102.03448.  Clients: `clients/fed_reconstruction.py`.
Others call it FedRecon; here `reconnaissance` is another method.
Equals FedAvg: no setting, because negatives are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fl import register

from .recommendation import Recommendation


@register("strategy", "fed_reconstruction")
@dataclass(frozen=True, kw_only=True)
class FedReconstruction(Recommendation):
    """Average changes of item rows, weighted by samples; user vectors are rebuilt and never kept."""

    weights: Literal["examples", "uniform"] = "examples"

    client: ClassVar[str] = "fed_reconstruction"
