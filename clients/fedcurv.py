"""FedCurv's client: local training with a spring to the models of the others; then its own Fisher information.

    g <- g + 2 lam (F w - b),   F = sum_{j != i} F_j,  b = sum_{j != i} F_j w_j:  the received sums minus the own part
    F_i = 1/n_i sum_s (d loss(w_i; x_s, y_s) / dw)^2,  per sample, at the trained model w_i, in evaluation mode

State: F_i and F_i w_i of the last participation (2 P numbers), and its round. They are subtracted if the sums come from
that round.   Shoham et al. 2019, arXiv:1910.07796.   Equals FedAvg: lam=0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from fl import (
    LocalTraining,
    Params,
    Penalty,
    StepContext,
    TrainingInputs,
    TrainingResult,
    Tree,
    checks,
    register,
    zeros_like,
)

from .fedewc import springs

NEVER = -2  # the round of the parts of a client that has none; the server's first sums are of round -1


def of_others(received: Mapping[str, Tree], state: Tree, sums_of_round: int) -> tuple[Params, Params]:
    """Return the sums F and b over the other clients.

    Args:
        received: the groups "fisher" and "pull", sums over all clients of a round.
        state: the client's own parts and their round.
        sums_of_round: the round that the sums come from.
    """
    own = state["round"] == sums_of_round
    return received["fisher"] - own * state["fisher"], received["pull"] - own * state["pull"]


@register("client", "fedcurv")
@dataclass(frozen=True, kw_only=True)
class FedCurv(LocalTraining):
    """Local training that holds weights that other clients need.

    Args:
        lam: weight of the penalty, at least 0. 0 is FedAvg, with three times its bytes.
    """

    lam: float = 1.0

    sends: ClassVar[tuple[str, ...]] = ("model", "fisher", "pull")
    statistics: ClassVar[tuple[str, ...]] = ("fisher", "pull")
    receives: ClassVar[tuple[str, ...]] = ("model", "fisher", "pull", "sums_of_round")

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.not_negative(lam=self.lam, hint="0 is FedAvg")

    def penalty(self, at: StepContext) -> Penalty | None:
        if not self.lam:
            return None
        total, pull = of_others(at.received, at.state, at.config["sums_of_round"])
        return springs(total.select(at.phase.trains), pull.select(at.phase.trains), 2 * self.lam)

    def extra_samples(self, sizes: np.ndarray, round_: int, rounds: int, name: str = "train") -> np.ndarray:
        return sizes if self.lam else np.zeros_like(sizes)

    def first_state(self, inputs: TrainingInputs) -> Tree:
        if not self.lam:
            return None
        model = inputs.received["model"]
        return {"fisher": zeros_like(model), "pull": zeros_like(model), "round": torch.tensor(NEVER)}

    def finish(self, end: TrainingResult) -> tuple[Mapping[str, Tree], Tree]:
        if not self.lam:
            return {"model": end.delta, "fisher": zeros_like(end.params), "pull": zeros_like(end.params)}, None
        own = end.fisher(end.params)
        parts = {"fisher": own, "pull": own * end.params}
        return {"model": end.delta, **parts}, {**parts, "round": torch.full_like(end.state["round"], end.round)}
