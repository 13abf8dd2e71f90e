"""FedNCF: a shared network scores private user vectors and shared item rows; changes of both shared parts are averaged.

Perifanis, Efraimidis 2022, arXiv:2106.04405.  Clients: `clients/fedncf.py`; the server:
`strategies/recommendation.py`. The network is averaged over all clients, with `rows: trained`, too.
Equals FedAvg: no setting, because negatives are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fl import register

from .recommendation import Recommendation


@register("strategy", "fedncf")
@dataclass(frozen=True, kw_only=True)
class FedNCF(Recommendation):
    """Average changes of item rows and of the network; user vectors stay with the users."""

    private: ClassVar[tuple[str, ...]] = ("scorer.user",)

    client: ClassVar[str] = "fedncf"
