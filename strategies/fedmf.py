"""FedMF: matrix factorisation with private user vectors.    score(u, i) = p_u . q_i,  changes of q_i are averaged

Ammad-ud-din et al. 2019, arXiv:1901.09888; Chai et al. 2019, arXiv:1906.05108. Clients: `clients/fedmf.py`; the server:
`strategies/recommendation.py`.
Equals FedAvg: no setting, because negatives are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl import register

from .recommendation import Recommendation


@register("strategy", "fedmf")
@dataclass(frozen=True, kw_only=True)
class FedMF(Recommendation):
    """Average changes of item rows; user vectors stay with the users."""

    client: ClassVar[str] = "fedmf"
