"""FedIns: FedAvg of a pool of adapters around a frozen body; each sample picks its own (`clients/fedins.py`).

    pool <- pool + mean_i (pool_i - pool),    entry by entry, uniform weights

Feng, Yu, Liu, Xu, Khan, Zuo 2023, arXiv:2308.06051.  Traffic per client and round: P (a + h + C h + C) floats each
way, for P entries, a scales and shifts, h features and C classes. The body comes from `model.init`, for no bytes.
Metrics: train/entryJ, the share of the clients' training samples that choose entry J. The shares add up to k.
Equals FedAvg: no setting; the client's entries=1, chosen=1, key_weight=0 is FedAvg of one set of scales and shifts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fl import FedAvgEquivalent, Params, ServerContext, register

from .fedavg import FedAvg, State


@register("strategy", "fedins")
@dataclass(frozen=True, kw_only=True)
class FedIns(FedAvg):
    """FedAvg of a pool of adapters.

    Args:
        weights: weights of the mean: `uniform` (the paper) or `examples` (number of training samples).
    """

    weights: Literal["examples", "uniform"] = "uniform"

    client: ClassVar[str] = "fedins"
    fedavg_equivalent: ClassVar[FedAvgEquivalent | None] = None

    def init(self, model: Params, ctx: ServerContext) -> State:
        others = [name for name in model if not name.startswith("adapters.")]
        if others:
            raise ValueError(
                f"name: fedins trains the parts adapters.* around a frozen body, and {others[0]} is trained too; use "
                "client: fedins without model.adapter"
            )
        return super().init(model, ctx)
