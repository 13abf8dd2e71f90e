"""PFedRec: private score functions, and a shared table of items that each user tunes for its own predictions.

Zhang, Long, Zhou, Yan, Zhang, Zhang, Yang 2023, arXiv:2301.08143.  Clients: `clients/pfedrec.py`; the server:
`strategies/recommendation.py`.
Equals FedAvg: no setting, because negatives are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl import register

from .recommendation import Recommendation


@register("strategy", "pfedrec")
@dataclass(frozen=True, kw_only=True)
class PFedRec(Recommendation):
    """Average changes of item rows; score functions and tuned rows stay with the users."""

    client: ClassVar[str] = "pfedrec"
