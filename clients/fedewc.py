"""FedEWC's client: local training with a spring at every weight; the diagonal Fisher information when a task ends.

    work train:   g <- g + lam (F w - b),  F and b = sum_t F_t w*_t from the server (nothing in the first task)
    work fisher:  F_i = 1/n_i sum_s (d loss(w; x_s, y_s) / dw)^2,  per sample, at the received model, in evaluation mode

Kirkpatrick et al. 2017, arXiv:1612.00796; the labels are the samples' own (empirical Fisher).
Equals FedAvg: lam=0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fl import ClientContext, LocalTraining, Params, Penalty, Reply, StepContext, Tree, Update, fisher, register


def springs(fisher: Params, pull: Params, lam: float) -> Penalty:
    """Return the penalty lam/2 sum_t F_t (w - w*_t)^2, with the gradient lam (F w - b).

    Args:
        fisher: F = sum_t F_t, a weight for each parameter.
        pull: b = sum_t F_t w*_t.
        lam: strength of all springs.
    """
    return Penalty(lam * fisher, slope=-lam * pull)


@register("client", "fedewc")
@dataclass(frozen=True, kw_only=True)
class FedEWC(LocalTraining):
    """Local training with elastic weight consolidation; its weight comes with the broadcast."""

    sends: ClassVar[tuple[str, ...]] = ("model", "fisher")
    receives: ClassVar[tuple[str, ...]] = ("model", "lam")

    def penalty(self, at: StepContext) -> Penalty | None:
        past, trains, lam = at.received.get("past"), at.phase.trains, at.config["lam"]
        if past is None or not lam:
            return None
        return springs(past["fisher"].select(trains), past["pull"].select(trains), lam)

    def workload(
        self, sizes: np.ndarray, round_: int, rounds: int, name: str = "train"
    ) -> tuple[np.ndarray, np.ndarray]:
        if name == "fisher":  # one gradient for each sample, and no step
            return np.zeros_like(sizes), sizes
        return super().workload(sizes, round_, rounds, name)

    def extra_samples(self, sizes: np.ndarray, round_: int, rounds: int, name: str = "train") -> np.ndarray:
        return sizes if name == "fisher" else np.zeros_like(sizes)

    def answer(self, name: str, ctx: ClientContext, carry: Tree) -> Reply:
        return Reply(Update({"fisher": fisher(ctx, ctx.received["model"])}, len(ctx.train)))
