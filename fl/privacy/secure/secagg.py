"""SecAgg: each pair of clients shares a mask.

Bonawitz et al. 2017, doi:10.1145/3133956.3133982, the protocol against honest-but-curious clients and server (Fig. 4
without the consistency check). Work and bytes of the shares grow with the square of the cohort.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl.checks import within
from fl.privacy.secure.protocol import SecureProtocol, complete_graph
from fl.registry import register


@register("protocol", "secagg")
@dataclass(frozen=True, kw_only=True)
class SecAgg(SecureProtocol):
    """Pairwise masks between all clients of a cohort.

    Args:
        threshold: share of the cohort that must answer the unmasking, in (0, 1]. Fewer answers abort the exchange.
            Fewer clients than this learn nothing from their shares, also if they are the server's.
    """

    threshold: float = 2 / 3
    own_share: ClassVar[bool] = True

    def __post_init__(self) -> None:
        within("(0, 1]", threshold=self.threshold)

    def neighbours(self, count: int, cohort: int, seed: int) -> tuple[np.ndarray, ...]:
        return complete_graph(count)

    def threshold_for(self, cohort: int) -> int:
        return max(math.ceil(self.threshold * cohort - 1e-9), 1)
